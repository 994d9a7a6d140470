"""What `mobizo demo` does: the main job inside ExecuTorch, the same in torch, both in one table, and at last
the program that was tuned writes.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from transformers import PreTrainedModel

from mobizo_kernels.cli.export import native
from mobizo_kernels.cli.processes import in_fresh_process
from mobizo_kernels.cli.results import ADAPTER_DIRECTORY, METRICS_FILE
from mobizo_kernels.cli.settings import TrainSettings
from mobizo_kernels.cli.task_settings import Engine
from mobizo_kernels.cli.train import train
from mobizo_kernels.cli.train_executorch import ADAPTER_FILE, DATASET_FILE, PROGRAM_FILE
from mobizo_kernels.data import (
    ChatEncoder,
    EncodedExample,
    Example,
    PromptEncoder,
    collate,
    parse_verbalizer,
    read_dataset,
    write_dataset,
)
from mobizo_kernels.errors import blame_input
from mobizo_kernels.models import load_model, load_tokenizer
from mobizo_kernels.training.writing import text_of

ENGINES: tuple[Engine, ...] = ("executorch", "eager")
PLANS = {
    "executorch": "In ExecuTorch: export SmolLM2-135M to a .pte, tune and score it with the native trainer,\n"
    "score the adapter in transformers and PEFT, let the .pte write. Two cores take 7 minutes, 0.5 s a\n"
    "step.",
    "eager": "In torch: tune and score the same model in bfloat16. Two cores take 2 minutes.",
}

REVIEWS = (
    "A warm and funny film, and nobody in it puts a foot wrong.",
    "Two long hours without a single idea of its own.",
)
QUESTION = "What is the capital of France?"
CONTEXT = 256
_NEW_TOKENS = 16

_ROWS_PER_FORWARD = 32


def demo(out: Path, engines: Sequence[Engine] = ENGINES, **changes: Any) -> dict[str, Any]:
    """Run `mobizo train` with each of `engines`, every one in a process of its own.

    What ExecuTorch tuned is then loaded by transformers and PEFT alone, and scored on the same test rows; and
    its program, which keeps all it needs to write, answers three prompts without the adapter and with it.

    Args:
        out: gets a directory for each engine.
        engines: of `ENGINES`.
        changes: to the defaults of `TrainSettings`.

    Returns:
        The summary of each engine; that of ExecuTorch has `peft_accuracy`, `peft_rows_that_differ` and
        `written` too.

    Raises:
        InputError: as `train`.
    """
    summaries: dict[str, Any] = {}
    for engine in engines:
        directory = out / engine
        own: dict[str, Any] = {"context": CONTEXT, **changes} if engine == "executorch" else changes
        settings = TrainSettings(**own, engine=engine, out=directory, overwrite=True)  # type: ignore[arg-type]
        summaries[engine] = in_fresh_process(train, settings)
        if engine == "executorch":
            summaries[engine] |= check_in_peft(settings.model, directory)
            summaries[engine]["written"] = write(settings)
    return summaries


def write(settings: TrainSettings) -> list[dict[str, str]]:
    """What the program of a run inside ExecuTorch writes behind two reviews, beginning with the likelier of
    its words, and behind a question that is none, where its adapters do not act: each prompt, the answer
    before the run, and the one after it.
    """
    run, tokenizer = settings.out, load_tokenizer(settings.model)
    verbalizer = parse_verbalizer(settings.verbalizer)
    encoder = PromptEncoder(tokenizer, settings.template, verbalizer, settings.max_length)
    examples = encoder.encode([Example(text, next(iter(verbalizer))) for text in REVIEWS])
    prompts = [example.input_ids[: -example.targets] for example in examples]
    shown = [text_of(tokenizer, prompt) for prompt in prompts] + [QUESTION]
    prompts.append(ChatEncoder(tokenizer).prompt((("user", QUESTION),)))
    trainer = native().Trainer(settings.program or run / PROGRAM_FILE, threads=settings.threads or 0)
    answers: list[list[str]] = []
    with TemporaryDirectory() as folder:
        reviews = Path(folder) / DATASET_FILE
        write_dataset(reviews, replace(read_dataset(run / DATASET_FILE), test=examples))
        for adapter in (None, run / ADAPTER_FILE):
            if adapter is not None:
                trainer.load_adapter(adapter)
            likelier = np.asarray(trainer.evaluate(reviews).scores).argmax(axis=1)
            begun = [[encoder.candidate_tokens[label]] for label in likelier] + [[]]
            answers.append([])
            for prompt, begin in zip(prompts, begun, strict=True):
                rest = trainer.generate(prompt + begin, max_new_tokens=_NEW_TOKENS).tokens
                answers[-1].append(text_of(tokenizer, [*begin, *rest]))
    return [
        {"prompt": prompt, "before": before, "after": after}
        for prompt, before, after in zip(shown, *answers, strict=True)
    ]


def check_in_peft(model: str, run: Path) -> dict[str, Any]:
    """Score the adapter of a run inside ExecuTorch with transformers and PEFT alone, in float32.

    Args:
        model: the base model.
        run: the directory of the run.

    Returns:
        The accuracy on the test rows, and how many of their predictions are not those of ExecuTorch.
    """
    there = np.array(json.loads((run / METRICS_FILE).read_text())["predictions"])
    dataset = read_dataset(run / DATASET_FILE)
    base, tokenizer = load_model(model, "float32")
    with blame_input("adapter"), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # transformers of a name that PEFT still uses
        tuned = PeftModel.from_pretrained(base, run / ADAPTER_DIRECTORY).eval()
    here = predictions(tuned, dataset.test, dataset.candidate_tokens or (), tokenizer.pad_token_id)
    labels = np.array([example.label for example in dataset.test])
    return {
        "peft_accuracy": float((here == labels).mean()),
        "peft_rows_that_differ": int((here != there).sum()),
    }


@torch.inference_mode()
def predictions(
    model: PreTrainedModel | PeftModel,
    examples: Sequence[EncodedExample],
    candidates: Sequence[int],
    pad_token: int,
) -> NDArray[np.int64]:
    """The label whose word `model` finds likeliest behind each prompt, int64 [examples]."""
    by_length = sorted(range(len(examples)), key=lambda row: len(examples[row].input_ids))
    found = np.empty(len(examples), np.int64)
    for start in range(0, len(by_length), _ROWS_PER_FORWARD):
        rows = by_length[start : start + _ROWS_PER_FORWARD]
        batch = collate([examples[row] for row in rows], pad_token)
        mask = batch["attention_mask"][:, :-1]
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        logits = model(
            input_ids=batch["input_ids"][:, :-1],
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
            logits_to_keep=1,
        ).logits
        found[rows] = logits[:, -1, list(candidates)].argmax(dim=1).numpy()
    return found
