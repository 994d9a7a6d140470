"""Two ranks of which one does something else than the other, and what comes of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import tiny
import torch
import torch.distributed as dist
from rank_runs import Case, a_model
from torch import nn

from mobizo_kernels.zo import RankFailed, ZerothOrder
from mobizo_kernels.zo.workers import Workers

BATCH = Case("lora").rows(0)[0]


def disagreements(folder: Path) -> dict[str, Any]:
    """Of each attempt the name of its error and the text, or no name and the value."""
    group, rank = dist.group.WORLD, dist.get_rank()
    found: dict[str, Any] = {}

    def note(name: str, run: Callable[[], Any]) -> None:
        try:
            found[name] = ("", run())
        except (RankFailed, ValueError, ZeroDivisionError) as error:
            found[name] = (type(error).__name__, str(error))

    def made(kind: str = "lora", **options: Any) -> ZerothOrder:
        given: dict[str, Any] = {"queries": 4, "eps": 1e-2, "lr": 0.05, "process_group": group, **options}
        return ZerothOrder(a_model(kind), **given)

    trials = 0

    def fails_on_one(model: nn.Module, batch: Mapping[str, torch.Tensor], groups: int) -> torch.Tensor:
        nonlocal trials
        trials += 1
        if rank and trials == 2:
            raise ZeroDivisionError("no answer")
        return torch.ones(groups)

    zo = made("in place")
    note("error between trials", lambda: zo.step(BATCH, objective=fails_on_one))
    note("error before trials", lambda: zo.step({} if rank else BATCH))
    note("equal after errors", zo.check_ranks)

    zo = made(split="rows")
    own = tiny.batch(torch.Generator().manual_seed(rank), (5, 6))
    note("shaping", lambda: zo.step(own, shaping="rank" if rank else "none"))
    note("objective", lambda: zo.step(own, objective=fails_on_one if rank else None))
    pair = [made(), made(run_seed=9)]
    note("two runs", lambda: pair[rank].step(BATCH))
    zo = made()
    options = zo.optimizer.param_groups[0]
    second = {**options, "params": options["params"][2:], "lr": 0.5 if rank else 0.05}
    second["param_names"] = options["param_names"][2:]
    options["params"], options["param_names"] = options["params"][:2], options["param_names"][:2]
    zo.optimizer.param_groups.append(second)
    note("rate of the second group", lambda: zo.step(BATCH))

    note("journal of rank 1", lambda: made(journal=folder / "one" if rank else None) and None)
    zo = made(journal=None if rank else folder / "zero")
    note("journal of rank 0", lambda: zo.step(BATCH).step)
    if not rank:
        zo.close_journal()
    note("closed on rank 0", lambda: zo.step(BATCH))
    zo = made(journal=folder / "dead")
    zo.step(BATCH)
    alone = dist.new_group([1])
    if rank:
        note("without its journal", lambda: zo.join(alone))
        zo.close_journal()
        note("closed", lambda: zo.join(alone) or zo.step(BATCH).step)

    def other_frozen() -> ZerothOrder:
        model = a_model("in place")
        frozen = model.lm_head.weight.requires_grad_(False)
        frozen.data += rank
        return ZerothOrder(model, process_group=group)

    note("frozen", other_frozen)
    impatient = dist.new_group(timeout=timedelta(seconds=2))
    zo = made(process_group=impatient, journal=None if rank else folder / "alone")
    note("another call", zo.sync_journal if rank else lambda: zo.step(BATCH))
    return found


def lost_before_all_knew(folder: Path) -> tuple[int, int]:
    """Steps made, and recorded, by a rank that goes on alone: the other dies when a record is on the disk."""
    rank, alone = dist.get_rank(), dist.new_group([0])
    zo = Case("lora").make(process_group=dist.group.WORLD, journal=folder / "run")
    confirm = Workers.confirm

    def dies(self: Workers, make: Callable[[], object], when: str) -> None:
        if rank:
            os.kill(os.getpid(), signal.SIGKILL)
        make()
        raise RankFailed(f"{when}: a rank is gone")

    zo.step(BATCH)
    Workers.confirm = dies  # type: ignore[method-assign]
    try:
        zo.step(BATCH)
    except RankFailed:
        Workers.confirm = confirm  # type: ignore[method-assign]
    zo.join(alone)
    zo.step(BATCH)
    assert zo.journal is not None
    return zo.steps, zo.journal.steps
