"""A whole step of training against the bare forward of its rows, stacked P-RGE, sequential MeZO and PEFT.

    python -m benchmarks.cpu.bench_step [--json FILE] [--threads N] [--quick] [--dtypes float32] ...

What is compared is in benchmarks/steps.py. All variants see the same G = 2q copies of a batch with one label
per row; none caches keys and values, and all compute logits at the labelled position only. The public codes
of the zeroth-order peers compute logits [rows, T, vocabulary]: "full logits" is the bare forward with them,
and tells what that alone costs. "first order" is LoRA-FA by back-propagation over as many rows; one such step
is worth many of the others. "compiled": the decoder's layers run by torch.compile; its first steps, which
compile, are not timed. "our products": float32 linears by what ours take on this CPU (bench_products.py).
"recipe": the adapters, the loss and the directions of docs/recipe.md.

Every variant has a process and a model of its own, and the processes make their steps in turns, so that a
change in the machine's speed meets all alike. Memory is taken from another process for each variant, in which
the C library gives freed tensors back at once (MALLOC_MMAP_THRESHOLD_): the peak is then what the step needs.
By default it is that plus the fragments of the heap, of another size in every run of the same program. "peak"
is that of the whole process while it steps, loading not counted; "grown" is over the loaded model.

Columns: seconds per step; peak and grown memory in MB (10^6 bytes); the loss, the same for all variants but
for the effect of their random directions; time and peak memory relative to the bare forward and to ours.
Goals: ours at most 1.08 x the time and 1.05 x the memory of the bare forward.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import warnings
from dataclasses import fields
from multiprocessing.connection import Connection
from time import perf_counter, process_time
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from benchmarks.harness import Report, count, parser, time_variants
from benchmarks.steps import STEPS, StepSettings
from mobizo_kernels.cli.memory import peak_rss_mb, reset_peak_rss
from mobizo_kernels.models import DTYPES, SMOLLM2

SMALLEST_MAPPED = "65536"  # bytes; what the C library maps, it returns to the system when it is freed
REFERENCES = {"bare": "bare forward", "ours": "ours"}  # what the others are compared with, by its column
QUICK = {"queries": 1, "batch_size": 1, "length": 8}


class Worker:
    """A process that holds one model and makes one kind of step on it, when told to.

    Attributes:
        loaded_mb: memory before the first step, in MB.
        loss: of the latest step.
        busy: seconds of processor time of all steps so far.
    """

    def __init__(self, name: str, settings: StepSettings, threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # fresh: a fork would share pages with this process
        self._name, (self._pipe, end) = name, context.Pipe()
        self._process = context.Process(target=serve, args=(name, settings, threads, end), daemon=True)
        self._process.start()
        end.close()
        self.loaded_mb: float = self._receive()
        self.loss, self.busy = float("nan"), 0.0

    def step(self) -> None:
        """Make a step."""
        self._pipe.send("step")
        self.loss, seconds = self._receive()
        self.busy += seconds

    def finish(self) -> float:
        """End the process; its peak memory in MB since it had loaded."""
        self._pipe.send("finish")
        peak: float = self._receive()
        self._process.join()
        return peak

    def _receive(self) -> Any:
        try:
            return self._pipe.recv()
        except EOFError:
            raise SystemExit(f"bench_step: {self._name} failed; its own error is above") from None


@torch.no_grad()
def serve(name: str, settings: StepSettings, threads: int, pipe: Connection) -> None:
    """The other end of a `Worker`."""
    torch.set_num_threads(threads)
    disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # transformers of names that PEFT still uses
    step = STEPS[name](settings)
    gc.collect()
    reset_peak_rss()
    pipe.send(peak_rss_mb())
    while pipe.recv() == "step":
        start = process_time()
        loss = step()
        pipe.send((loss, process_time() - start))
    pipe.send(peak_rss_mb())


def memory(name: str, settings: StepSettings, threads: int, steps: int = 2) -> tuple[float, float]:
    """Memory in MB before the first step, and at its peak in the first two."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = SMALLEST_MAPPED
    try:
        worker = Worker(name, settings, threads)
    finally:
        del os.environ["MALLOC_MMAP_THRESHOLD_"]
    for _ in range(steps):
        worker.step()
    return worker.loaded_mb, worker.finish()


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--model", default=SMOLLM2, help="smollm2, a directory or a hub name")
    options_parser.add_argument(
        "--dtypes", nargs="+", choices=sorted(DTYPES), default=["float32", "bfloat16"], help="of the model"
    )
    options_parser.add_argument(
        "--variants",
        nargs="+",
        choices=list(STEPS),
        default=list(STEPS),
        help="beside the bare forward and ours",
    )
    options_parser.add_argument("--queries", type=count, default=4, help="q")
    options_parser.add_argument("--batch-size", type=count, default=4, help="B; a forward has 2 q B rows")
    options_parser.add_argument("--length", type=count, default=64, help="tokens before the label")
    options_parser.add_argument("--rank", type=count, default=16, help="of the adapters")
    options_parser.add_argument("--targets", nargs="+", default=["q_proj", "v_proj"], help="linears to adapt")
    options_parser.add_argument(
        "--only", action="store_true", help="the --variants alone, against the first of them"
    )
    options_parser.add_argument(
        "--processor-time", action="store_true", help="of each step: for a machine that has other work"
    )
    options_parser.add_argument("--rounds", type=count, default=11, help="steps of each variant to time")
    options = options_parser.parse_args()
    if options.rounds < 2:
        options_parser.error(f"argument --rounds: expected at least 2, got {options.rounds}")
    if options.quick:
        vars(options).update(QUICK, rounds=2)
    always = () if options.only else tuple(REFERENCES.values())
    names = [name for name in STEPS if name in {*always, *options.variants}]
    report = Report("step", options)
    for dtype in options.dtypes:
        values = {**vars(options), "dtype": dtype}
        settings = StepSettings(**{field.name: values[field.name] for field in fields(StepSettings)})
        compare(names, settings, options, report)
    report.finish()


def compare(names: list[str], settings: StepSettings, options: argparse.Namespace, report: Report) -> None:
    """Add a row to `report` for each of the named variants."""
    threads = options.threads
    loaded, peak = {}, {}
    for name in names:
        loaded[name], peak[name] = memory(name, settings, threads)
    workers = {name: Worker(name, settings, threads) for name in names}

    def busy() -> float:
        return sum(worker.busy for worker in workers.values())

    steps = {name: worker.step for name, worker in workers.items()}
    clock = busy if options.processor_time else perf_counter
    timings = time_variants(steps, options.rounds, clock=clock)
    medians = {name: timing.p50 for name, timing in timings.items()}
    references = {"first": names[0]} if options.only else REFERENCES
    for name, worker in workers.items():
        worker.finish()
        report.add(
            {"dtype": settings.dtype, "variant": name},
            {name: timings[name]},
            {
                "s per step": timings[name].show(1.0),
                "peak MB": peak[name],
                "grown MB": peak[name] - loaded[name],
                "loss": worker.loss,
                **{
                    f"{what} / {short}": of[name] / of[reference]
                    for short, reference in references.items()
                    for what, of in (("time", medians), ("peak", peak))
                },
            },
        )


if __name__ == "__main__":
    main()
