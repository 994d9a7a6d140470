"""Steps of training programs on the first batch of a data set, in turns: what a base costs and tells.

    mobizo export --out none.pte && mobizo export --out int8-dynamic.pte --quantization int8-dynamic
    mobizo tokenize --out dataset.safetensors
    python -m benchmarks.executorch.recipe dataset.safetensors none.pte int8-dynamic.pte --threads 1

Columns: seconds of a step; seconds of processor time, which other work on the machine disturbs less, and
their median ratio to the first program's, turn by turn; the mean loss; and how the differences L+ - L- of all
queries correlate with the first program's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Report, Timing, count, parser
from mobizo_kernels.data import EncodedExample, read_dataset
from mobizo_kernels.executorch import Description, Trainer

EPS = 0.1


def main() -> None:
    options = _options()
    report = Report("executorch_recipe", options)
    data = read_dataset(options.dataset)
    trainers = {path: Trainer(path, threads=options.threads) for path in options.programs}
    steps = {}
    for path, trainer in trainers.items():
        description = trainer.description
        rows = [data.train[row] for row in data.order[: description.batch_size]]
        steps[path] = (*batch(rows, description), *directions(description.queries))
    losses = {path: trainers[path].train_step(*steps[path])[0] for path in trainers}
    wall: dict[str, list[float]] = {path: [] for path in trainers}
    processor: dict[str, list[float]] = {path: [] for path in trainers}
    for turn in range(2 if options.quick else options.rounds):
        first = turn % len(trainers)
        for path in options.programs[first:] + options.programs[:first]:
            started = time.perf_counter(), time.process_time()
            trainers[path].train_step(*steps[path])
            wall[path].append(time.perf_counter() - started[0])
            processor[path].append(time.process_time() - started[1])
    base = options.programs[0]
    for path in options.programs:
        ratios = [mine / other for mine, other in zip(processor[path], processor[base], strict=True)]
        timings = {"wall": Timing.of(wall[path]), "processor": Timing.of(processor[path])}
        results = {
            "s per step": timings["wall"].show(1.0),
            "processor": timings["processor"].show(1.0),
            "ratio": statistics.median(ratios),
            "loss": f"{losses[path].mean():.4f}",
            "correlation": float(np.corrcoef(_differences(losses[path]), _differences(losses[base]))[0, 1]),
        }
        report.add({"program": Path(path).name}, timings, results)
    report.finish()


def batch(rows: list[EncodedExample], description: Description) -> tuple[NDArray[np.int64], ...]:
    """Inputs of `train_step` for a program of Activated LoRA with one target a row."""
    invocation, tail = description.invocation_tokens, description.tail_length
    assert invocation is not None and tail is not None
    inputs = [row.input_ids[:-1] for row in rows]
    starts = [
        max(i for i in range(len(ids)) if tuple(ids[i : i + len(invocation)]) == invocation) for ids in inputs
    ]
    width = max(description.min_length, max(starts) + tail)
    tokens = np.full((len(rows), width), description.pad_token, np.int64)
    mask = np.zeros_like(tokens)
    positions, targets = np.zeros((len(rows), 1), np.int64), np.zeros((len(rows), 1), np.int64)
    for i, (row, ids, start) in enumerate(zip(rows, inputs, starts, strict=True)):
        first = width - tail - start
        tokens[i, first : first + len(ids)], mask[i, first : first + len(ids)] = ids, 1
        positions[i], targets[i] = first + len(ids) - 1, row.input_ids[-1]
    return tokens, mask, positions, targets


def directions(queries: int) -> tuple[NDArray[np.int64] | NDArray[np.float32], ...]:
    """Seeds and coefficients of a two-sided step, and an update that changes nothing."""
    seeds, coeffs = np.arange(queries), np.full(queries, EPS, np.float32)
    groups = np.tile(seeds, 2), np.concatenate([coeffs, -coeffs])
    return *groups, np.zeros(queries, np.int64), np.zeros(queries, np.float32)


def _differences(losses: NDArray[np.float32]) -> NDArray[np.float32]:
    plus, minus = np.split(losses, 2)
    return np.asarray(plus - minus)


def _options() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("dataset", help="of mobizo tokenize")
    options.add_argument("programs", nargs="+", help="of mobizo export, with --tail and plain SGD")
    options.add_argument("--rounds", type=count, default=11, help="steps of each program to time")
    return options.parse_args()


if __name__ == "__main__":
    main()
