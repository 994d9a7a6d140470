"""The commands that are tried on a disk that fails: tiny ones, each of which writes something else."""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from crash import tiny_task
from faults import Children, Command

from mobizo_kernels.cli import adapter, export, main, replay, tokenize, train  # noqa: F401  before a fork
from mobizo_kernels.integrations.transformers import ZOConfig, ZOTrainer

RUNNER = ("mobizo_runner train", "mobizo_runner tokenize")


def commands(children: Children, root: Path) -> dict[str, Command]:
    """By their names, on files that are made in `root`: a model, data, a program, adapters, a journal."""
    made = dict(python_commands(root))
    for name, file in (("mobizo export", "export"), ("mobizo tokenize", "tokens"), ("mobizo train", "run")):
        (root / file).mkdir()
        ended = children.run(made[name](root / file), {})
        if ended.status != 0:
            raise RuntimeError(f"{name} failed: {ended.errors}")
    program, dataset = root / "export" / "tiny.pte", root / "tokens" / "data.safetensors"
    tokenizer = root / "export" / "tokenizer.json"
    peft, journal = root / "run" / "adapter", root / "run" / "journal"
    model = f"--model={root / 'model'}"
    return {
        "mobizo_runner train": lambda folder: [
            "train", program, dataset, "--steps=4", "--eval-every=2", "--quiet", "--resume",
            f"--journal={folder / 'journal'}", f"--adapter-out={folder / 'adapter.safetensors'}",
        ],
        "mobizo_runner tokenize": lambda folder: [
            "tokenize", program, root / "data.csv", f"--tokenizer={tokenizer}", "--steps=4",
            f"--out={folder / 'data.safetensors'}", "--overwrite",
        ],
        **made,
        "mobizo train --engine executorch": lambda folder: [
            *made["mobizo train"](folder), "--engine=executorch", f"--program={program}", "--dtype=auto",
        ],
        "mobizo adapter": lambda folder: [
            "adapter", peft, folder / "device.safetensors", model, "--overwrite",
        ],
        "mobizo replay": lambda folder: [
            "replay", journal, model, f"--out={folder / 'adapter'}", "--overwrite",
        ],
    }  # fmt: skip


def python_commands(root: Path) -> dict[str, Command]:
    """Those that need nothing but texts and a model, which are made in `root`."""
    task = {**tiny_task(root), "steps": 3, "start": "readout"}
    del task["stop_unsteady"]
    labelled = ("model", "data", "template", "verbalizer")
    texts = options({name: task[name] for name in labelled})
    shared = ("model", "template", "verbalizer", "batch_size", "queries")
    return {
        "mobizo train": lambda folder: [
            "train", *options(task), "--resume", f"--out={folder}", f"--journal={folder / 'journal'}",
        ],
        "mobizo tokenize": lambda folder: [
            "tokenize", *texts, "--steps=4", f"--out={folder / 'data.safetensors'}", "--overwrite",
        ],
        "mobizo export": lambda folder: [
            "export", *options({name: task[name] for name in shared}), "--overwrite",
            f"--out={folder / 'tiny.pte'}", f"--tokenizer={folder / 'tokenizer.json'}",
        ],
        "checkpoints of ZOTrainer": lambda folder: ["checkpoints", folder],
    }  # fmt: skip


def options(values: Mapping[str, Any]) -> list[str]:
    """As the command line has them."""
    return [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]


def run_task(arguments: Sequence[str]) -> int:
    """The exit code of a command, run in this process."""
    try:
        if arguments[0] == "checkpoints":
            checkpointed(Path(arguments[1]))
        else:
            main.run(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    except BaseException as error:
        print("".join(traceback.format_exception_only(error)), end="")
        return 1
    return 0


def checkpointed(folder: Path) -> None:
    """Four steps of ZOTrainer with a checkpoint every second; it goes on from the last that can be read."""
    import tiny
    import torch
    from peft import LoraConfig

    from mobizo_kernels import wrap

    rng = torch.Generator().manual_seed(0)
    rows = [{name: column[0].tolist() for name, column in tiny.batch(rng, (6,)).items()} for _ in range(8)]
    config = ZOConfig(
        str(folder), max_steps=4, save_steps=2, save_strategy="steps", use_cpu=True, report_to=[],
        disable_tqdm=True, per_device_train_batch_size=2,
    )  # fmt: skip
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    for checkpoint in (*sorted(found, reverse=True), None):
        trainer = ZOTrainer(
            wrap(tiny.llama(), LoraConfig(r=2, target_modules=["q_proj"])), config, train_dataset=rows
        )
        try:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        except (OSError, ValueError, EOFError, RuntimeError) as error:
            if checkpoint is None:
                raise
            print(f"{checkpoint.name}: {error}")
            continue
        trainer.save_model(str(folder / "final"))
        return
