"""What a program writes beside transformers over PEFT: the same tokens? how many a second?

    mobizo export --out program.pte --context 512
    python -m benchmarks.executorch.generation program.pte [--prompts N] [--tokens N] [--json FILE]

The program is one of SmolLM2-135M-Instruct. Its adapter gets an update of some size, and PEFT gets what
`save_peft` writes of it. Each prompt is answered greedily by both, in turns; in float32 the tokens have to be
the same, in other types the share of the same ones is a column. One thread each by default.

Columns: tokens of the prompt; the answer's tokens that are the same; tokens/s of the prompt (prefill) and of
the answer (decode), of the program; tokens/s of the answer, the prompt's time among it, of both. The last
lines: bytes of the file, memory of the process with the program loaded and after writing (VmHWM, before torch
has the model).
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch

from benchmarks.harness import Report, count, parser
from mobizo_kernels.cli.memory import peak_rss_mb
from mobizo_kernels.data import ChatEncoder
from mobizo_kernels.executorch import Trainer
from mobizo_kernels.models import load_model

QUESTIONS = (
    "What is the capital of France?", "Count to five.", "Name a fruit.", "Why is the sky blue?",
    "Write a short poem about rain.", "What is 17 plus 25?", "Who wrote Hamlet?", "Tell me a joke.",
    "Translate 'water' to French.", "How do bees make honey?", "What is a prime number?",
    "Give me three colours.", "Explain gravity to a child.", "What is the largest planet?",
    "Describe a sunny day.", "What does a baker do?", "How long is a marathon?",
    "What is photosynthesis?", "Name two rivers in Germany.", "What should I cook tonight?",
)  # fmt: skip
SIZE = 3e-2


def options() -> argparse.Namespace:
    result = parser(__doc__)
    result.add_argument("program", help="of SmolLM2, with a context")
    result.add_argument("--prompts", type=count, default=20, help=f"at most {len(QUESTIONS)}")
    result.add_argument("--tokens", type=count, default=64, help="of an answer, at most")
    result.set_defaults(threads=1)
    return result.parse_args()


def by_transformers(
    model: Any, prompt: list[int], most: int, stop: tuple[int, ...]
) -> tuple[list[int], float]:
    """The answer and the seconds that it took."""
    ids, begun = torch.tensor([prompt]), time.perf_counter()
    found = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=most, do_sample=False,
        eos_token_id=list(stop), pad_token_id=0,
    )  # fmt: skip
    return found[0, len(prompt) :].tolist(), time.perf_counter() - begun


def main() -> None:
    chosen = options()
    torch.set_num_threads(chosen.threads)
    trainer = Trainer(chosen.program, threads=chosen.threads)
    description = trainer.description
    assert description.generation is not None, "the program was exported without a context"
    chosen.quantization, chosen.context = description.quantization, description.generation.context
    loaded = peak_rss_mb()
    trainer.update(np.arange(description.queries), np.full(description.queries, SIZE, np.float32))
    trainer.generate([1, 2, 3, 4], max_new_tokens=4)
    written = peak_rss_mb()
    report = Report("generation", chosen)
    model, tokenizer = load_model("smollm2", "float32")
    encoder, stop = ChatEncoder(tokenizer), description.generation.stop_tokens
    with tempfile.TemporaryDirectory() as folder:
        trainer.save_peft(folder)
        tuned = peft.PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()
    prompts, tokens = (2, 8) if chosen.quick else (chosen.prompts, chosen.tokens)
    for question in QUESTIONS[:prompts]:
        prompt = encoder.prompt((("user", question),))
        trainer.generate(prompt[:1], max_new_tokens=1)  # nothing of the prompt but its first token is kept
        ours = trainer.generate(prompt, max_new_tokens=tokens)
        theirs, seconds = by_transformers(tuned, prompt, tokens, stop)
        same = next(
            (i for i, (a, b) in enumerate(zip(ours.tokens, theirs, strict=False)) if a != b), len(theirs)
        )
        if description.quantization == "none" and list(ours.tokens) != theirs:
            raise SystemExit(f"{question!r}: other tokens from the {same + 1}th on")
        number, whole = len(ours.tokens), ours.prefill_seconds + ours.decode_seconds
        report.add(
            {"prompt": len(prompt), "answer": number},
            {},
            {
                "same": same,
                "prefill/s": ours.prefilled / ours.prefill_seconds,
                "decode/s": (number - 1) / ours.decode_seconds,
                "whole/s": number / whole,
                "transformers/s": len(theirs) / seconds,
            },
        )
    size = Path(chosen.program).stat().st_size
    print(f"\n{size} bytes; {loaded:.0f} MB loaded, {written:.0f} MB after writing")
    report.finish()


if __name__ == "__main__":
    main()
