"""Timing of variants in turns, and a report of it: a table of ratios for people, JSON for programs."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from mobizo_kernels.cli.environment import environment

Variant = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """Seconds per call: the 20, 50 and 80 % quantiles of the samples."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Timing:
        """That of 2 samples or more."""
        p20, _, _, p80 = statistics.quantiles(samples, n=5, method="inclusive")
        return cls(p20, statistics.median(samples), p80)

    def show(self, scale: float) -> str:
        """Median and, in brackets, the other two quantiles, in seconds * scale."""
        low, median, high = (f"{value * scale:#.3g}" for value in (self.p20, self.p50, self.p80))
        return f"{median} ({low}-{high})"


def time_variants(
    variants: Mapping[str, Variant],
    rounds: int,
    shortest: float = 2e-3,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time the variants in turns, so that a change in the machine's speed meets all of them alike.

    Args:
        variants: what to call, by name.
        rounds: samples of each variant, at least 2. Every round begins with another variant.
        shortest: seconds; a sample is of as many calls as take that long.
        clock: gives seconds.
    """
    calls = {name: _calls_to_last(shortest, variant, clock) for name, variant in variants.items()}
    samples: dict[str, list[float]] = {name: [] for name in variants}
    names = list(variants)
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(_seconds(variants[name], calls[name], clock) / calls[name])
    return {name: Timing.of(values) for name, values in samples.items()}


def fastest(timings: Mapping[str, Timing], names: Iterable[str]) -> str:
    """Which of the named variants has the least median."""
    return min(names, key=lambda name: timings[name].p50)


def dtype_name(dtype: torch.dtype) -> str:
    """float32, not torch.float32."""
    return str(dtype).removeprefix("torch.")


def _calls_to_last(seconds: float, variant: Variant, clock: Callable[[], float]) -> int:
    variant()  # the first call may compile, allocate or page in
    calls = 1
    while _seconds(variant, calls, clock) < seconds:
        calls *= 2
    return calls


def _seconds(variant: Variant, calls: int, clock: Callable[[], float]) -> float:
    start = clock()
    for _ in range(calls):
        variant()
    return clock() - start


class Report:
    """The rows of a benchmark: printed as they come, and written by `finish` with what the run ran on.

    Args:
        name: of the benchmark.
        options: of the command line, as :func:`parser` reads them.
    """

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        self._path: Path | None = options.json
        self._widths: dict[str, int] = {}
        self._rows: list[dict[str, Any]] = []
        settings = {key: value for key, value in vars(options).items() if key != "json"}
        facts = machine()
        self._head = {"benchmark": name, "settings": settings, "machine": facts}
        print(f"bench_{name}:", _listed(settings))
        print(_listed({key: facts[key] for key in ("date", "cpu", "cores", "kernels", "torch")}))

    def add(
        self, case: Mapping[str, object], timings: Mapping[str, Timing], results: Mapping[str, str | float]
    ) -> None:
        """Print one row, `case` and `results`; the JSON file holds the timings, in seconds per call, as well.

        All rows of a report have the same columns; those with a % in their name are signed percentages.
        """
        row = {**case, **results}
        if not self._rows:
            self._widths = {n: max(len(n), 15 if isinstance(value, str) else 6) for n, value in row.items()}
            print("\n" + "  ".join(name.rjust(width) for name, width in self._widths.items()))
        cells = (_cell(name, value).rjust(self._widths[name]) for name, value in row.items())
        print("  ".join(cells), flush=True)
        seconds = {name: asdict(timing) for name, timing in timings.items()}
        self._rows.append({"case": dict(case), "seconds": seconds, "results": dict(results)})

    def finish(self) -> None:
        """Write the JSON file, if one was asked for."""
        if self._path is not None:
            self._path.write_text(json.dumps({**self._head, "rows": self._rows}, indent=2) + "\n")


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    result = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument("--json", type=_new_file, metavar="FILE", help="write all timings to FILE")
    result.add_argument("--threads", type=count, default=torch.get_num_threads(), help="of all variants")
    result.add_argument("--quick", action="store_true", help="small sizes, few repetitions: a smoke test")
    return result


def count(text: str) -> int:
    """An option that is a number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text!r}")
    return int(text)


def _new_file(text: str) -> Path:
    path = Path(text)
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the directory {path.parent} does not exist")
    return path


def _cell(column: str, value: object) -> str:
    if isinstance(value, float):
        return f"{value:+.1f}" if "%" in column else f"{value:.2f}"
    return str(value)


def _listed(facts: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def machine() -> dict[str, Any]:
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    facts = {"date": date, "cores": os.cpu_count(), **environment()}
    del facts["threads"]  # every benchmark sets its own
    return facts
