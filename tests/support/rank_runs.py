"""Runs of tiny models, alone or as a rank of a group, for the tests of training on several ranks."""

from __future__ import annotations

import itertools
import os
import runpy
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import peft
import tiny
import torch
import torch.distributed as dist
from peft import LoraConfig
from torch import nn

import mobizo_kernels as mobizo
from mobizo_kernels.data import EncodedExample
from mobizo_kernels.journal import JournalLost
from mobizo_kernels.training import fit
from mobizo_kernels.zo import RankFailed, RanksDisagree, ZerothOrder, tuned_parameters
from mobizo_kernels.zo.trials import Trials

Batch = dict[str, torch.Tensor]
STEPS = 3


@dataclass(frozen=True)
class Case:
    """A run, and who gets which rows.

    Attributes:
        kind: "lora", "parameters" in one forward, or "in place".
        options: of ZerothOrder.
        parts: of the rows; a rank gets that of its line.
    """

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    parts: int = 1

    def rows(self, step: int) -> list[Batch]:
        """The batch of each part of the rows; they have different numbers of rows and labels."""
        return [
            tiny.batch(
                torch.Generator().manual_seed(100 * step + part), (7, 5, 9)[: 1 + part % 3], labelled=1 + part
            )
            for part in range(self.parts)
        ]

    def make(self, **others: Any) -> ZerothOrder:
        return ZerothOrder(
            a_model(self.kind), **{"queries": 4, "eps": 1e-2, "lr": 0.05, **self.options, **others}
        )


CASES = {
    "queries": Case("lora", {"split": "queries"}),
    "uneven": Case(
        "lora", {"split": "queries", "estimator": "one_sided", "optimizer": "adam", "normalize": True}
    ),
    "centred": Case("lora", {"split": "queries", "estimator": "centred", "queries": 6, "momentum": 0.9}),
    "full": Case("parameters", {"split": "queries", "distribution": "outer", "eps": 1e-3}),
    "in place": Case("in place", {"split": "queries", "eps": 1e-3}),
    "rows": Case("lora", {"split": "rows"}, 4),
    "full rows": Case("parameters", {"split": "rows", "distribution": "outer", "eps": 1e-3}, 4),
    "in place rows": Case("in place", {"split": "rows", "eps": 1e-3}, 4),
    "both": Case("lora", {"split": "both", "query_ranks": 2, "slices": 4}, 2),
}


def a_model(kind: str, seed: int = 0, targets: Sequence[str] = ("q_proj", "v_proj")) -> Any:
    model = tiny.llama()
    if kind == "lora":
        return mobizo.wrap(model, LoraConfig(r=3, lora_alpha=6, target_modules=list(targets)), seed=seed)
    return mobizo.wrap_parameters(model) if kind == "parameters" else model


def tuned(zo: ZerothOrder) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tuned_parameters(zo.model)}


def alone(case: Case, **options: Any) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """The losses of each step, and what is tuned at the end, in this process."""
    given = {name: value for name, value in case.options.items() if name not in ("split", "query_ranks")}
    zo = Case(case.kind, given).make(**options)
    losses = [zo.step(case.rows(step)).losses for step in range(STEPS)]
    return losses, tuned(zo)


def one_of_several(case: Case) -> tuple[list[torch.Tensor], dict[str, torch.Tensor]]:
    """The same of a rank."""
    zo = case.make(process_group=dist.group.WORLD, check_every=2)
    part = zo.rank * case.parts // dist.get_world_size()
    losses = [zo.step(case.rows(step)[part]).losses for step in range(STEPS)]
    zo.check_ranks()
    return losses, tuned(zo)


def all_cases(journal: Path) -> dict[str, Any]:
    found: dict[str, Any] = {name: one_of_several(case) for name, case in CASES.items()}
    return {**found, "fit": fitted(journal, process_group=dist.group.WORLD)}


def fitted(journal: Path, **options: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """A run with validations, and what is kept of it."""
    rng = torch.Generator().manual_seed(3)
    texts = torch.randint(8, tiny.VOCABULARY, (12, 5), generator=rng).tolist()
    rows = [EncodedExample([*text, 5 + 2 * (row % 2)], row % 2) for row, text in enumerate(texts)]
    zo = ZerothOrder(a_model("lora"), queries=2, lr=0.5, candidate_tokens=[5, 7], **options)
    result = fit(zo, [rows[:4], rows[4:8]], steps=4, validation=rows[8:], eval_every=2, journal=journal)
    return (result.losses, result.validations, result.best_step, zo.journal), tuned(zo)


def faults(folder: Path) -> dict[str, Any]:
    """What befalls a rank when something is wrong with one of them, the last of which is killed."""
    group, rank = dist.group.WORLD, dist.get_rank()
    case, found = CASES["queries"], {}

    def note(name: str, run: Callable[[], Any]) -> None:
        try:
            found[name] = ("", run())
        except (RanksDisagree, RankFailed, JournalLost, ValueError, ArithmeticError) as error:
            found[name] = (type(error).__name__, str(error))

    def wrong(**options: Any) -> Callable[[], Any]:
        """A run that has other options on rank 2."""
        return lambda: case.make(process_group=group, **(options if rank == 2 else {}))

    for name, options in {
        "seed": {"run_seed": 5},
        "lr": {"lr": 0.07},
        "check_every": {"check_every": 7},
    }.items():
        note(name, lambda options=options: wrong(**options)() and None)
    note("lora_a", lambda: ZerothOrder(a_model("lora", rank // 3), process_group=group) and None)
    targets = ["q_proj", "o_proj"] if rank == 1 else ["q_proj", "v_proj"]
    note("names", lambda: ZerothOrder(a_model("lora", 0, targets), process_group=group) and None)

    ddp = nn.parallel.DistributedDataParallel(a_model("in place"))  # as accelerator.prepare returns it
    found["inside of DDP"] = ZerothOrder(ddp, process_group=group).model is ddp.module
    zo = case.make(process_group=group, check_every=2)
    before = tuned(zo)
    own = tiny.batch(torch.Generator().manual_seed(rank), (5, 6))
    batch = case.rows(0)[0]
    note("batch", lambda: zo.step(own))
    note("rate", lambda: at_rate(zo, 0.2 if rank == 3 else 0.1, batch))

    def objective(model: nn.Module, batch: Mapping[str, torch.Tensor], groups: int) -> torch.Tensor:
        if rank == 1:
            raise ZeroDivisionError("no answer")
        return torch.zeros(groups)

    note("objective", lambda: zo.step(batch, objective=objective))
    nothing = {**batch, "labels": torch.full_like(batch["labels"], -100)}
    note("nothing", lambda: zo.step(nothing))
    found["untouched"] = all(torch.equal(before[name], value) for name, value in tuned(zo).items())

    def not_finite(model: nn.Module, batch: Mapping[str, torch.Tensor], groups: int) -> torch.Tensor:
        return torch.full((groups,), float("nan") if rank == 2 else 1.0)

    note("skipped", lambda: (zo.step(batch, objective=not_finite).skipped, zo.skipped_steps, zo.steps))
    if rank == 3:
        next(iter(tuned_parameters(zo.model)))[1].data[0, 0] += 1e-6
    note("drift", lambda: [zo.step(batch).step for _ in range(2)])

    zo = case.make(process_group=group, split="rows")
    note("no labels on three", lambda: zo.step(batch if rank == 1 else nothing).losses)

    zo = case.make(process_group=group, journal=folder / "journal")
    found["journal"] = zo.journal is not None
    zo.step(batch)
    dist.barrier()
    if rank == 0:
        (folder / "journal").unlink()
    dist.barrier()
    note("lost", lambda: zo.step(batch))
    found["steps"] = zo.steps
    zo.close_journal()
    note("late", lambda: late(group, folder / "second"))

    def killed(model: nn.Module, batch: Mapping[str, torch.Tensor], groups: int) -> torch.Tensor:
        if rank == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return torch.zeros(groups)

    note("killed", lambda: zo.step(batch, objective=killed))
    return found


def trainer_run(argument: tuple[Path, str, list[Any]]) -> list[dict[str, Any]]:
    """A rank of a run of ZOTrainer, and of one that goes on from its middle: what it began with and tuned,
    its losses, and what is around the model.
    """
    from mobizo_kernels.integrations.transformers import ZOConfig, ZOTrainer

    folder, kind, data = argument
    args = ZOConfig(
        str(folder), max_steps=4, per_device_train_batch_size=2, use_cpu=True, report_to=[], logging_steps=1,
        disable_tqdm=True, queries=2, eps=1e-2, learning_rate=0.01, seed=7, save_strategy="steps",
        save_steps=2, train_sampling_strategy="sequential",
    )  # fmt: skip
    found = []
    for checkpoint in (None, str(folder / "checkpoint-2")):
        torch.manual_seed(dist.get_rank())  # PEFT draws another LoRA-A on every rank
        model = tiny.llama()
        if kind == "peft":
            lora = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
            model = peft.get_peft_model(model, lora)
        start = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
        trainer = ZOTrainer(model, args, train_dataset=data, data_collator=collate)
        trainer.train(resume_from_checkpoint=checkpoint)
        found.append({
            "start": start,
            "tuned": {name: tensor.detach().clone() for name, tensor in model.named_parameters()},
            "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
            "around": type(trainer.model_wrapped).__name__,
        })  # fmt: skip
    return found


def collate(rows: list[dict[str, list[int]]]) -> Batch:
    """Fills rows up on the right."""
    width = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "attention_mask": 0, "labels": -100}
    return {
        name: torch.tensor([row[name] + [value] * (width - len(row[name])) for row in rows])
        for name, value in fill.items()
    }


def at_rate(zo: ZerothOrder, lr: float, batch: Batch) -> None:
    zo.optimizer.param_groups[0]["lr"] = lr
    try:
        zo.step(batch)
    finally:
        zo.optimizer.param_groups[0]["lr"] = 0.05


def late(world: dist.ProcessGroup, journal: Path) -> dict[str, torch.Tensor]:
    """Three ranks make two steps, a fourth comes, and four make one more; four slices all the time."""
    case, first = CASES["queries"], dist.new_group([0, 1, 2])
    if dist.get_rank() < 3:
        zo = case.make(process_group=first, slices=4, journal=journal)
        for step in range(2):
            zo.step(case.rows(step)[0])
        zo.join(world)
    else:
        zo = case.make(process_group=world, slices=4)
    zo.step(case.rows(2)[0])
    zo.close_journal()
    return tuned(zo)


def run_script(argument: tuple[list[str], int | None]) -> str:
    """Run a script, whose rank 2 is killed in a step when its losses have been taken; the text of what befell
    another rank then.
    """
    arguments, kill_at = argument
    losses_of, counted = Trials.losses, itertools.count()

    def losses(self: Trials, *args: Any) -> Any:
        found = losses_of(self, *args)
        if next(counted) == kill_at and os.environ["RANK"] == "2":
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    Trials.losses = losses  # type: ignore[method-assign]
    sys.argv = arguments
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except RankFailed as error:
        return str(error)
    return ""
