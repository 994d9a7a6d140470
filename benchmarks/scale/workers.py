"""From one to ten thousand ranks: what a step costs, and what it is worth, by times measured here.

Three things are timed: steps of a small Llama (a forward of two groups and its update), an update along many
directions, and what ranks tell each other by gloo over the loopback. A step of W ranks is then that of the
slowest of W draws from the measured steps, and the rest. The ring that gloo gathers in has W - 1 hops, each
as long as a gather of two ranks takes; more of them than there are cores would time the scheduler. Steps are
in processor time, which other work on the machine stretches less than the clock's.

A step is worth |g|^2 / E |estimate|^2, to which the best learning rate, and so the progress of a step, is
proportional: 1 / ((1 + (d - 1) / q) (1 + noise / B)), d parameters, q directions of signs, B rows, and
`noise`, the variance of a row's gradient over the squared norm of the mean.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import peft
import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM, LlamaConfig

import mobizo_kernels as mobizo
from mobizo_kernels.optim import query_seeds
from mobizo_kernels.optim.records import StepRecord
from mobizo_kernels.zo.exchange import HEAD
from mobizo_kernels.zo.workers import Workers

CHILDREN = multiprocessing.get_context("forkserver")
CHILDREN.set_forkserver_preload(["mobizo_kernels.zo"])
DIRECTIONS = 512
DRAWS = 200


@dataclass(frozen=True)
class Measured:
    """Seconds on this machine, and what they are of.

    Attributes:
        parameters: d, tuned.
        rows: in a batch.
        steps: of one thread, each a forward of two groups, and an update along one direction.
        direction: of an update, for each of its directions.
        exchanges: medians by number of ranks.
    """

    parameters: int
    rows: int
    steps: list[float]
    direction: float
    exchanges: dict[int, float]

    @property
    def hop(self) -> float:
        """Of a ring."""
        return self.exchanges[2]


@dataclass(frozen=True)
class Plan:
    """A step of so many ranks.

    Attributes:
        ranks: W.
        query_ranks: of them, that share rows.
        queries: q of the step.
        rows: B of the step.
        sent: bytes that a rank tells.
        received: bytes that a rank is told.
        seconds: median.
        slow: the 95 % quantile.
        worth: |g|^2 / E |estimate|^2, over that of one rank.
        worth_per_second: the same by time.
    """

    ranks: int
    query_ranks: int
    queries: int
    rows: int
    sent: int
    received: int
    seconds: float
    slow: float
    worth: float
    worth_per_second: float


def measure(rows: int, length: int, steps: int, worlds: Sequence[int]) -> Measured:
    """Time a model of 20 million parameters, and processes that gather."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192, hidden_size=384, intermediate_size=1024, num_hidden_layers=6, num_attention_heads=6
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    mobizo.wrap(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
    zo = mobizo.ZerothOrder(model, queries=1, distribution="rademacher", lr=1e-6)
    ids = torch.randint(3, 8192, (rows, length))
    labels = torch.where(torch.arange(length) == length - 1, ids, -100)
    times = [_seconds(lambda: zo.step({"input_ids": ids, "labels": labels})) for _ in range(steps + 3)][3:]
    record = StepRecord(torch.full((DIRECTIONS,), 1e-9))
    seeds = query_seeds(0, 0, DIRECTIONS)
    update = statistics.median(_seconds(lambda: zo.optimizer.apply(seeds, record)) for _ in range(5))
    parameters = sum(parameter.numel() for parameter in zo.optimizer.param_groups[0]["params"])
    return Measured(
        parameters, rows, times, update / DIRECTIONS, {ranks: _gathers(ranks) for ranks in worlds}
    )


def plan(measured: Measured, ranks: int, query_ranks: int, queries: int, noise: float, seed: int = 0) -> Plan:
    """A step in which each rank runs the two groups of `queries` directions on its rows.

    Args:
        measured: times.
        ranks: W.
        query_ranks: ranks that share rows.
        queries: of a rank.
        noise: variance of a row's gradient over the squared norm of the mean.
        seed: of the draws.
    """
    every, rows = queries * query_ranks, measured.rows * ranks // query_ranks
    forward = np.asarray(measured.steps) - measured.direction
    draws = np.random.default_rng(seed).choice(forward, (DRAWS, ranks)).max(axis=1) * queries
    hops = (ranks - 1) * measured.hop
    seconds = draws + every * measured.direction + hops
    sent = 8 * (HEAD + 2 * queries)
    median, slow = (float(value) for value in np.quantile(seconds, (0.5, 0.95)))
    worth = _worth(measured, every, rows, noise)
    return Plan(ranks, query_ranks, every, rows, sent, sent * ranks, median, slow, worth, worth / median)


def best(measured: Measured, ranks: int, queries: int, noise: float) -> Plan:
    """The grid whose steps are worth most by time."""
    divisors = [part for part in range(1, ranks + 1) if ranks % part == 0]
    plans = [plan(measured, ranks, part, queries, noise) for part in divisors]
    return max(plans, key=lambda found: found.worth_per_second)


def _worth(measured: Measured, queries: int, rows: int, noise: float) -> float:
    return 1 / ((1 + (measured.parameters - 1) / queries) * (1 + noise / rows))


def _seconds(call: Callable[[], object], clock: Callable[[], float] = time.thread_time) -> float:
    started = clock()
    call()
    return clock() - started


def _gathers(ranks: int) -> float:
    """Median seconds in which ranks of this machine tell each other a step of 4 queries."""
    with TemporaryDirectory() as folder:
        here, there = CHILDREN.Pipe()
        processes = [
            CHILDREN.Process(target=_rank, args=(folder, ranks, rank, there)) for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        found: float = here.recv()
        for process in processes:
            process.join()
    return found


def _rank(folder: str, ranks: int, rank: int, end: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meeting", timedelta(minutes=2), ranks, rank)
    workers = Workers(dist.group.WORLD, torch.device("cpu"))
    told = [1.0] * (HEAD + 8)
    times = [_seconds(lambda: workers.gather(told, "a step"), time.perf_counter) for _ in range(300)]
    if rank == 0:
        end.send(statistics.median(times[50:]))
    dist.destroy_process_group()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 10, 100, 1000, 10000])
    parser.add_argument("--queries", type=int, default=4, help="of each rank")
    parser.add_argument("--noise", type=float, default=90.0, help="of the gradients of rows")
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--steps", type=int, default=60, help="to time")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured = measure(options.rows, options.length, options.steps, (2, 4))
    steps = statistics.median(measured.steps)
    print(f"d = {measured.parameters}; a step of two groups of {measured.rows} rows {steps * 1e3:.1f} ms,")
    print(f"a direction of an update {measured.direction * 1e6:.1f} us; a gather by gloo", end="")
    print("".join(f", {ranks} ranks {value * 1e6:.0f} us" for ranks, value in measured.exchanges.items()))
    print("| split | ranks | queries | rows | bytes told, heard | seconds (95 %) | worth | per second |")
    print("|---|---|---|---|---|---|---|---|")
    one = plan(measured, 1, 1, options.queries, options.noise)
    plans = []
    for ranks in options.ranks:
        made = {
            "queries": plan(measured, ranks, ranks, options.queries, options.noise),
            "rows": plan(measured, ranks, 1, options.queries, options.noise),
            "both, best": best(measured, ranks, options.queries, options.noise),
        }
        for name, found in made.items():
            worth, speed = found.worth / one.worth, found.worth_per_second / one.worth_per_second
            split = name if name != "both, best" else f"both, {found.query_ranks} share rows"
            print(
                f"| {split} | {ranks} | {found.queries} | {found.rows} | {found.sent}, {found.received} "
                f"| {found.seconds:#.3g} ({found.slow:#.3g}) | {worth:#.3g}x | {speed:#.3g}x |"
            )
            plans.append({"split": name, **asdict(found)})
    if options.json is not None:
        content = {"noise": options.noise, "measured": asdict(measured), "plans": plans}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
