"""The data set file: read by a parser of its own, cut everywhere, contradicting itself; and its command."""

from __future__ import annotations

import itertools
import json
import re
import struct
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import full_disk
from safetensors.numpy import load_file, save_file
from tiny_texts import TEMPLATE, WORDS, reviews, save_model, tokenizer, write_csv
from transformers import AutoTokenizer

from mobizo_kernels.cli import main
from mobizo_kernels.data import (
    EncodedExample,
    PromptEncoder,
    TokenizedDataset,
    collate,
    examples_fingerprint,
    load_splits,
    read_dataset,
    tokenizer_fingerprint,
    training_batches,
    training_order,
    write_dataset,
)
from mobizo_kernels.errors import InputError
from mobizo_kernels.models import load_tokenizer

DTYPES = {"I32": np.dtype("<i4"), "I64": np.dtype("<i8")}
METADATA = {
    "format": "mobizo-dataset-1",
    "tokenizer": "ab12",
    "labels": '["0", "1"]',
    "candidate_tokens": "[7, 9]",
    "template": "{text} It was",
    "source": "here",
}


def dataset(rng: torch.Generator, rows: int = 11) -> TokenizedDataset:
    """Rows of odd lengths, one to three tokens of each being its answer."""

    def examples(count: int) -> list[EncodedExample]:
        made = []
        for _ in range(count):
            length, targets, label = (
                int(torch.randint(low, high, (1,), generator=rng)) for low, high in ((4, 40), (1, 4), (-1, 2))
            )
            tokens = torch.randint(0, 50000, (length,), generator=rng).tolist()
            tokens[-targets:] = [(7, 9)[label]] * targets
            made.append(EncodedExample(tokens, label, targets))
        return made

    order = torch.randint(0, rows, (23,), generator=rng).tolist()
    return TokenizedDataset(
        examples(rows), examples(3), [], order, ("0", "1"), (7, 9), "ab12", "{text} It was", "here"
    )


def parse(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """docs/formats.md in a few lines."""
    content = path.read_bytes()
    (size,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + size])
    metadata = header.pop("__metadata__")
    checksum = metadata.pop("checksum")
    arrays = {}
    for name, entry in header.items():
        first, last = (8 + size + offset for offset in entry["data_offsets"])
        arrays[name] = np.frombuffer(content[first:last], DTYPES[entry["dtype"]])
        assert list(arrays[name].shape) == entry["shape"]
    said = "".join(f"{name}\0{value}\0" for name, value in sorted(metadata.items())).encode()
    for name, entry in sorted(header.items()):
        said += f"{name}\0{entry['dtype']}\0{entry['shape'][0]}\0".encode() + arrays[name].tobytes()
    assert checksum == f"{zlib.crc32(said):08x}"
    return metadata, arrays


def test_the_file(tmp_path: Path, rng: torch.Generator) -> None:
    path, data = tmp_path / "new" / "data.safetensors", dataset(rng)
    write_dataset(path, data)
    assert read_dataset(path) == data
    content = path.read_bytes()
    write_dataset(path, data)
    assert path.read_bytes() == content
    metadata, arrays = parse(path)
    assert metadata == METADATA
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        "train.order": "int32",
        **{f"{s}.offsets": "int64" for s in ("train", "validation", "test")},
        **{
            f"{s}.{n}": "int32"
            for s in ("train", "validation", "test")
            for n in ("tokens", "targets", "labels")
        },
    }
    assert arrays["train.order"].tolist() == data.order
    for split, examples in {"train": data.train, "validation": data.validation, "test": []}.items():
        offsets = arrays[f"{split}.offsets"]
        assert len(offsets) == len(examples) + 1
        for row, example in enumerate(examples):
            tokens = arrays[f"{split}.tokens"][offsets[row] : offsets[row + 1]].tolist()
            assert tokens == example.input_ids
            assert arrays[f"{split}.targets"][row] == example.targets
            assert arrays[f"{split}.labels"][row] == example.label


def test_free_answers(tmp_path: Path, rng: torch.Generator) -> None:
    free = replace(
        dataset(rng), candidate_tokens=None, labels=(), train=[EncodedExample([5, 6, 2], -1, 2)], order=[0]
    )
    free = replace(free, validation=[], source="")
    write_dataset(tmp_path / "data", free)
    assert read_dataset(tmp_path / "data") == free
    assert parse(tmp_path / "data")[0]["candidate_tokens"] == "null"


def test_the_answer_has_the_labels_of_a_batch() -> None:
    batch = collate([EncodedExample([5, 6, 7, 8], -1, 2), EncodedExample([9, 4], 0)], pad_token=3)
    assert batch["labels"].tolist() == [[-100, -100, 7, 8], [-100, -100, -100, 4]]


def test_every_truncation(tmp_path: Path, rng: torch.Generator) -> None:
    path = tmp_path / "data"
    write_dataset(path, dataset(rng, rows=2))
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(InputError, match=f"data set {path}"):
            read_dataset(path)
    with pytest.raises(InputError, match="there is no file '.*absent'"):
        read_dataset(tmp_path / "absent")


def _int(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({}, {"format": "pt"}, "expected format 'mobizo-dataset-1', got 'pt'"),
        ({}, {"labels": '{"a": 1}'}, "expected labels to be a JSON list of str"),
        ({}, {"labels": "null"}, "expected labels to be a JSON list of str, got 'null'"),
        ({}, {"candidate_tokens": "[7, 9.0]"}, "expected candidate_tokens to be a JSON list of int"),
        ({}, {"candidate_tokens": "[7, 7]"}, "a different token for each of at least two labels"),
        ({}, {"candidate_tokens": "[7, 9, 11]"}, "a different token for each of at least two labels"),
        ({}, {"candidate_tokens": "["}, "expected candidate_tokens to be a JSON list of int, got '\\['"),
        ({}, {"candidate_tokens": "[7, 8]"}, "row 1 of train: expected targets among .*7, 8.*, got \\[9\\]"),
        ({}, {"candidate_tokens": "[9, 7]"}, "row 0 of train: expected the token 9 of its label"),
        ({"train.labels": None}, {}, "there is no tensor train.labels"),
        ({"train.order": None}, {}, "there is no tensor train.order"),
        ({"train.order": _int()}, {}, "expected at least one row in train.order"),
        ({"train.order": _int(0, 2)}, {}, "from 0 to 1, got 2 in train.order"),
        ({"train.order": _int(-1)}, {}, "from 0 to 1, got -1 in train.order"),
        ({"train.targets": _int(1)}, {}, "expected 2 entries in train.targets"),
        ({"train.targets": _int(1, 0)}, {}, "row 1 of train: expected targets from 1 to 3, .* got 0"),
        ({"train.targets": _int(3, 1)}, {}, "row 0 of train: expected targets from 1 to 2, .* got 3"),
        ({"train.labels": _int(0, 2)}, {}, "row 1 of train: expected a label from -1 to 1, got 2"),
        ({"train.tokens": _int(5, 6, 7, 8, -1, 4, 9)}, {}, "expected token ids from 0, got -1"),
        ({"train.tokens": _int(5, 6, 7)}, {}, "expected train.offsets to rise from 0 to 3"),
        ({"train.tokens": np.zeros(7, np.int64)}, {}, r"to be int32 \[n\], got int64 \[7\]"),
        ({"train.tokens": np.zeros((7, 1), np.int32)}, {}, r"to be int32 \[n\], got int32 \[7, 1\]"),
        ({"train.offsets": np.array([0, 8, 7])}, {}, "expected train.offsets to rise"),
        ({"train.offsets": np.array([1, 3, 7])}, {}, "expected train.offsets to rise"),
        ({"train.offsets": np.array([0, 3, 6])}, {}, "expected train.offsets to rise"),
    ],
)  # fmt: skip
def test_contradictions_are_refused(
    tensors: dict[str, Any], metadata: dict[str, str], message: str, tmp_path: Path
) -> None:
    rows = [EncodedExample([5, 6, 7], 0), EncodedExample([8, 3, 4, 9], 1)]
    path = tmp_path / "data"
    write_dataset(path, TokenizedDataset(rows, [], [], [1, 0], ("0", "1"), (7, 9), "ab12"))
    spoiled = {name: array for name, array in {**load_file(path), **tensors}.items() if array is not None}
    save_file(spoiled, path, {**parse(path)[0], **metadata})
    with pytest.raises(InputError, match=f"data set {path}: {message}|data set {path}: .*{message}"):
        read_dataset(path)


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, rng: torch.Generator) -> None:
    path, data = tmp_path / "data", dataset(rng)
    write_dataset(path, data)
    before = path.read_bytes()
    with pytest.raises(InputError, match="got 99 in train.order"):
        write_dataset(path, replace(data, order=[99]))
    with full_disk(1000), pytest.raises(OSError, match=f"{path} cannot be written .File too large"):
        write_dataset(path, data)
    with pytest.raises(OSError, match=f"{tmp_path} cannot be written .it exists and is no file"):
        write_dataset(tmp_path, data)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_the_order_is_that_of_the_batches() -> None:
    rows = [EncodedExample([label, *range(3 + 7 * n % 11)], label) for n in range(20) for label in (0, 1)]
    order, batches = training_order(rows, 6, 3), training_batches(rows, 6, 3)
    for _ in range(20):
        assert [rows[row] for row in next(order)] == next(batches)


def test_fingerprint_of_examples(rng: torch.Generator) -> None:
    rows = dataset(rng).train
    known = examples_fingerprint(rows)
    assert len(known) == 32 and known == examples_fingerprint(list(rows))
    for other in (rows[1:], rows[::-1], [replace(rows[0], targets=rows[0].targets + 1), *rows[1:]]):
        assert examples_fingerprint(other) != known


def test_fingerprint_of_a_tokenizer(tmp_path: Path) -> None:
    known = tokenizer_fingerprint(tokenizer())
    tokenizer().save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path))
    assert tokenizer_fingerprint(loaded) == known
    loaded(
        ["The film", "A"], padding="longest", truncation=True, max_length=1
    )  # leaves its mark on the backend
    assert tokenizer_fingerprint(loaded) == known
    program = (
        "import sys; from transformers import AutoTokenizer; from mobizo_kernels.data import "
        "tokenizer_fingerprint as f; print(f(AutoTokenizer.from_pretrained(sys.argv[1])))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == known
    other = AutoTokenizer.from_pretrained(tmp_path)
    other.add_tokens(["film plot"])
    assert tokenizer_fingerprint(other) != known


class Slow:
    """A tokenizer without a backend of the tokenizers library."""

    def __init__(self, vocabulary: dict[str, int], ranks: dict[tuple[str, str], int]) -> None:
        self.vocabulary, self.bpe_ranks = vocabulary, ranks

    def get_vocab(self) -> dict[str, int]:
        return self.vocabulary


def test_fingerprint_of_a_slow_tokenizer() -> None:
    vocabulary, ranks = {"a": 0, "b": 1, "ab": 2}, {("a", "b"): 0, ("ab", "a"): 1}
    known = tokenizer_fingerprint(Slow(vocabulary, ranks))  # type: ignore[arg-type]
    turned = dict(reversed(vocabulary.items())), dict(reversed(ranks.items()))
    assert tokenizer_fingerprint(Slow(*turned)) == known  # type: ignore[arg-type]
    for other in (Slow({**vocabulary, "c": 3}, ranks), Slow(vocabulary, {("a", "b"): 1, ("ab", "a"): 0})):
        assert tokenizer_fingerprint(other) != known  # type: ignore[arg-type]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()  # the tokenizer is enough
    data = write_csv(tmp_path / "data.csv", reviews())
    options = [
        f"--model={tmp_path / 'model'}",
        f"--data={data}",
        f"--template={TEMPLATE}",
        "--steps=5",
        "--seed=3",
    ]
    options += [f"--verbalizer={json.dumps(WORDS)}", "--batch-size=6", "--eval-rows=7", "--validation-rows=4"]
    out = f"--out={tmp_path / 'new' / 'data.safetensors'}"
    with pytest.raises(SystemExit, match="0"):
        main.run(["tokenize", *options, out, "--max-length=12", "--json"])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    made = read_dataset(tmp_path / "new" / "data.safetensors")
    encoder, splits = PromptEncoder(tokenizer(), TEMPLATE, WORDS, 12), load_splits(str(data))
    train = encoder.encode(splits.train)
    assert made.train == train
    assert made.validation == encoder.encode(splits.validation[:4])
    assert made.test == encoder.encode(splits.test[:7])
    assert max(len(row.input_ids) for row in train) == summary["longest_row"] == 12
    assert (summary["train_rows"], summary["validation_rows"], summary["test_rows"]) == (len(train), 4, 7)
    batches = itertools.islice(training_batches(train, 6, 3), 5)
    assert [train[row] for row in made.order] == list(itertools.chain.from_iterable(batches))
    assert made.labels == ("0", "1") and made.candidate_tokens == encoder.candidate_tokens
    assert (made.template, made.source) == (TEMPLATE, str(data))
    assert made.tokenizer == tokenizer_fingerprint(tokenizer())

    again = [out, "--overwrite"]
    for bad, message in (
        (["--batch-size=1000", *again], "batch_size: expected 1 to"),
        ([f"--out={tmp_path}"], "out: .* cannot be written .it exists and is no file"),
        (["--max-length=2", *again], "max_length: expected at least"),
        (["--seed=4", out], "out: .* exists; name another file, or add --overwrite"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main.run(["tokenize", *options, *bad])
        assert re.match(f"mobizo: {message}", capsys.readouterr().err)
    assert read_dataset(tmp_path / "new" / "data.safetensors") == made
    with pytest.raises(SystemExit, match="0"):
        main.run(["tokenize", *options, *again, "--seed=4", "--max-length=12"])
    assert read_dataset(tmp_path / "new" / "data.safetensors").order != made.order
