"""Small files of each kind that the native trainer reads, for mutations to begin with.

    python tests/support/seed_files.py build/fuzz/seeds

writes a folder for each target of `tests/fuzz`.
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save as save_safetensors

from mobizo_kernels.data import EncodedExample, TokenizedDataset, write_dataset
from mobizo_kernels.files.safetensors import with_checksum

Files = dict[str, bytes]

CANDIDATES = (5, 9)
SGD: dict[str, Any] = {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0}
ADAM: dict[str, Any] = {"name": "adam", "beta1": 0.9, "beta2": 0.75, "eps": 1e-8, "weight_decay": 0.5}
TURN = {"before": "<u>", "left": "none", "right": "all"}
CHAT: dict[str, Any] = {
    "system": {**TURN, "before": "<s>"},
    "user": TURN,
    "user_after_system": {**TURN, "left": "newlines"},
    **dict.fromkeys(("user_after_answer", "earlier_answer", "answer"), TURN),
    "generation_prompt": "<u>",
    "end": "</s>\n",
    "special": ["</s>"],
    "end_tokens": [256],
    "refused": ["</think>"],
}
TEXTS = {
    "prompt": {"template": "{title} {text} It", "labels": ["0", "1"], "words": [" no", " yes"]},
    "chat": CHAT,
    "no_chat": None,
}
LINES = [
    {"text": 'good, "very" good\u00e9', "label": 1, "title": "A"},
    {"text": "bad\nworse", "label": 0, "title": 2.5},
    {"text": "\U0001f600 so so", "label": "other", "title": True},
]
SAID = [
    {"prompt": "1?", "response": "2"},
    {
        "messages": [
            {"role": role, "content": f"{role} {i}"} for i, role in enumerate(("user", "assistant") * 2)
        ]
    },
    {"messages": [{"role": role, "content": role} for role in ("system", "user", "assistant")]},
]


def _parameter(name: str, stream: int) -> dict[str, Any]:
    return {"name": f"{name}.weight", "stream": stream, "lora_a": [2, 3], "lora_b": [4, 2], "scaling": 2.0}


def description(**changes: Any) -> dict[str, Any]:
    """What a tiny program for labelled texts says of itself, with `changes`; `...` leaves a member out."""
    whole: dict[str, Any] = {
        "format": 1,
        "versions": {"torch": "2.13.0"},
        "model": {"name": "tiny", "architecture": "LlamaForCausalLM", "fingerprint": "abc"},
        "quantization": "none",
        "queries": 2,
        "batch_size": 3,
        "groups": 4,
        "estimator": "two_sided",
        "distribution": "gaussian",
        "optimizer": SGD,
        "min_length": 3,
        "max_length": 24,
        "dynamic_length": True,
        "targets_per_row": 1,
        "invocation_tokens": None,
        "tail_length": None,
        "candidate_tokens": list(CANDIDATES),
        "vocabulary": 61,
        "pad_token": 0,
        "evaluation_rows": 2,
        "tokenizer": None,
        "adapter": {
            "config": {"r": 2, "lora_alpha": 4, "rank_pattern": {}, "alpha_pattern": {}},
            "parameters": [_parameter("q", 1), _parameter("v", -5)],
        },
        **changes,
    }
    return {name: value for name, value in whole.items() if value is not ...}


def _delegated() -> dict[str, Any]:
    batch = [
        ["input_ids", "int64", [3, 24]],
        ["attention_mask", "int64", [3, 24]],
        ["target_positions", "int64", [3, 1]],
    ]
    factors = [[f"lora_b:{name}.weight", "float32", [4, 2]] for name in "qv"]
    sides = [
        [f"{side}:{name}.weight", "float32", [4, n]] for side, n in (("u", 4), ("v", 2)) for name in "qv"
    ]
    rows = [[name, dtype, [2, *shape[1:]]] for name, dtype, shape in batch]
    methods = {
        "train_step": [*batch, ["target_ids", "int64", [3, 1]], *factors, *sides],
        "evaluate": [*rows, *factors],
    }
    inputs = {
        method: [dict(zip(("name", "dtype", "shape"), values, strict=True)) for values in listed]
        for method, listed in methods.items()
    }
    return description(format=2, distribution="outer", lowering="delegated", inputs=inputs)


def descriptions() -> Files:
    head = {
        "name": "lm_head.weight", "shape": [10, 3], "scale": 1.0, "soft_cap": 30.0, "rank": 0,
        "pattern": "lm_head", "target_modules": ["q", "v", "lm_head"],
    }  # fmt: skip
    found = {
        "labels": description(),
        "head": description(head=head),
        "activated": description(
            candidate_tokens=None, targets_per_row=3, invocation_tokens=[7, 8], tail_length=9,
            estimator="one_sided", groups=3, optimizer=ADAM,
        ),
        "texts": description(
            tokenizer="f", texts=TEXTS, generation={"context": 40, "chunk": 8, "stop_tokens": [2, 60]}
        ),
        "no_chat": description(tokenizer="f", texts={"prompt": None, "chat": None, "no_chat": "why"}),
        "delegated": _delegated(),
    }  # fmt: skip
    return {f"{name}.json": json.dumps(values).encode() for name, values in found.items()}


def datasets() -> Files:
    rng = np.random.default_rng(0)

    def row(length: int, label: int) -> EncodedExample:
        return EncodedExample([*rng.integers(10, 61, length - 1).tolist(), CANDIDATES[label]], label, 1)

    def activated(length: int) -> EncodedExample:
        return EncodedExample([*rng.integers(10, 61, length).tolist(), 7, 8, 30, 31, 32, 33], -1, 2)

    labels = {
        name: [row(n, i % 2) for i, n in enumerate(lengths)]
        for name, lengths in (("train", (2, 25, 9)), ("validation", (4,)), ("test", (3, 5)))
    }
    free = {name: [activated(n) for n in (0, 3, 11)] for name in labels}
    found = {
        "labels": TokenizedDataset(
            **labels, order=(0, 2, 1, 1), labels=("no", "yes"), candidate_tokens=CANDIDATES, tokenizer="f",
            in_turn=(1, 0, 2),
        ),
        "activated": TokenizedDataset(**free, order=(2, 1), labels=(), candidate_tokens=None, tokenizer="f"),
    }  # fmt: skip
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, dataset in found.items():
            path = Path(folder, name)
            write_dataset(path, dataset)
            files[f"{name}.safetensors"] = path.read_bytes()
    return files


def adapters() -> Files:
    """Of the program "head": LoRA-A is 0.5 throughout."""
    tensors = {}
    for name in "qv":
        tensors[f"base_model.model.{name}.lora_A.weight"] = np.full((2, 3), 0.5, np.float32)
        tensors[f"base_model.model.{name}.lora_B.weight"] = np.arange(8, dtype=np.float32).reshape(4, 2)
    config: dict[str, Any] = {"r": 2, "lora_alpha": 4, "rank_pattern": {}, "alpha_pattern": {}}
    words = np.zeros((10, 1), np.float32)
    words[list(CANDIDATES)] = [[1], [-2]]
    head = {
        "base_model.model.lm_head.lora_A.weight": np.ones((1, 3), np.float32),
        "base_model.model.lm_head.lora_B.weight": words,
    }
    own = {**config, "rank_pattern": {"lm_head": 1}, "alpha_pattern": {"lm_head": 1}}
    metadata = {"format": "pt", "base_fingerprint": "abc"}
    return {
        "peft.safetensors": save_safetensors(tensors, {"format": "pt"}),
        "device.safetensors": _sealed(tensors, {**metadata, "adapter_config": json.dumps(config)}),
        "head.safetensors": _sealed({**tensors, **head}, {**metadata, "adapter_config": json.dumps(own)}),
    }


def _sealed(tensors: dict[str, np.ndarray[Any, Any]], metadata: dict[str, str]) -> bytes:
    return save_safetensors(tensors, with_checksum(metadata, tensors))


def journals() -> Files:
    header: dict[str, Any] = {
        "run_seed": -7, "queries": 2, "eps": 0.01, "lr": 0.5, "lr_schedule": "cosine", "steps": 9,
        "normalize": True, "distribution": "gaussian", "estimator": "two_sided", "optimizer": SGD,
        "batch_size": 3, "data": "ab", "candidate_tokens": list(CANDIDATES), "base_fingerprint": "abc",
        "base_dtype": "float32",
        "parameters": [{"name": "q.weight", "shape": [4, 2], "stream": 1, "scaling": 2.0}],
        "invocation_tokens": None, "lora_a": "aa", "lora_b": None,
    }  # fmt: skip
    later = ("candidate_tokens", "base_dtype", "invocation_tokens", "lora_a", "lora_b")
    second = {name: value for name, value in header.items() if name not in later}
    second["parameters"] = [{"name": "q.weight", "shape": [4, 2], "stream": 1}]
    first = {name: value for name, value in second.items() if name != "optimizer"}
    sound = journal_of(3, json.dumps({**header, "optimizer": ADAM}).encode(), records(3, 2, 3))
    return {
        "third": sound,
        "torn": sound[:-5],
        "second": journal_of(2, json.dumps(second).encode(), records(2, 2, 2)),
        "first": journal_of(1, json.dumps(first).encode(), records(1, 2, 2)),
    }


def journal_of(version: int, header: bytes, body: bytes) -> bytes:
    """The file, the checksum of its header right."""
    head = struct.pack("<8sII", b"MOBIZOJN", version, len(header)) + header
    return head + struct.pack("<I", zlib.crc32(head)) + body


def records(version: int, queries: int, steps: int) -> bytes:
    body = b""
    for step in range(steps):
        numbers = struct.pack("<I3f", step % 2, 0.5, 0.25, 1.0) if version > 1 else b""
        record = struct.pack("<q", step) + numbers + struct.pack(f"<{queries}f", *range(queries))
        body += record + struct.pack("<I", zlib.crc32(record))
    return body


def tokenizers() -> Files:
    from tokenizers_of_kinds import KINDS, trained

    bytes_alone = {
        "model": {
            "type": "BPE", "byte_fallback": True, "unk_token": None, "fuse_unk": False, "merges": [],
            "vocab": {f"<0x{byte:02X}>": byte for byte in range(256)},
        },
        "added_tokens": [
            {"id": 256, "content": "</s>", "special": True, "normalized": False, "single_word": False,
             "lstrip": False, "rstrip": False}
        ],
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
    }  # fmt: skip
    found = {"bytes": json.dumps(bytes_alone).encode()}
    for kind in KINDS:
        values = json.loads(trained(kind).to_str())
        shorten(values["model"])
        found[kind] = json.dumps(values, ensure_ascii=False).encode() + b"\0it's <mask> word 12"
    return {f"{name}.json": content for name, content in found.items()}


def shorten(model: dict[str, Any], most: int = 40) -> None:
    """Keeps the first merges and what they need, so that a file is small."""
    merges = model["merges"][:most]
    made = {"".join(pair) for pair in model["merges"]} - {"".join(pair) for pair in merges}
    kept = [token for token in model["vocab"] if token not in made]
    numbers = {token: i for i, token in enumerate(kept)}
    model["vocab"], model["merges"] = numbers, merges


def rows() -> Files:
    import csv
    import io

    out = io.StringIO()
    writer = csv.DictWriter(out, list(LINES[0]))
    writer.writeheader()
    writer.writerows(LINES)
    table = out.getvalue().encode()
    lines = "\n".join(map(json.dumps, LINES)).encode()
    said = "\n".join(json.dumps(row, ensure_ascii=False) for row in SAID).encode()
    return {
        "s.csv": table,
        "t.csv": b"\xef\xbb\xbf" + table,
        "j.jsonl": lines,
        "k.jsonl": lines,
        "c.jsonl": said,
    }


def chats() -> Files:
    said = b"\0! be kind\0 \n1?\0\n2\n\0and </s>?\0<u> yes"
    plain = {**CHAT, "system": None, "user_after_system": None, "refused": []}
    return {
        "system.json": json.dumps(TEXTS).encode() + said,
        "plain.json": json.dumps({**TEXTS, "chat": plain, "prompt": None}).encode() + b"\0a\0b",
    }


def all_kinds() -> Iterator[tuple[str, Files]]:
    """Each target with its files."""
    found = descriptions()
    yield "description", found
    yield "json", {**found, "numbers.json": b'[1, -0.5, 1e-7, 9223372036854775807, "\\u00e9\\ud83d\\ude00"]'}
    yield "dataset", datasets()
    yield "adapter", adapters()
    yield "safetensors", {**datasets(), **adapters()}
    yield "journal", journals()
    yield "tokenizer", tokenizers()
    yield "rows", {name: name[:1].encode() + content for name, content in rows().items()}
    yield "chat", chats()


def main(out: Path) -> None:
    for target, files in all_kinds():
        (out / target).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (out / target / name).write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
