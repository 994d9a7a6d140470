"""What bench.py tells: tables and goals for people, JSON for programs, both before time is up."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Timing
from mobizo_kernels.cli.environment import environment

DONE, RUNNING, NOT_REACHED = "done", "cut off", "not reached"
LAST_WORDS = 2.0
"""Seconds that are kept for the tables at the end."""


class Table:
    """Rows of equal columns: the case, its timings in seconds per call, and what is shown of them."""

    def __init__(self, report: GpuReport, caption: str) -> None:
        self.caption, self.rows = caption, list[dict[str, Any]]()
        self._report = report

    def add(
        self, case: Mapping[str, object], timings: Mapping[str, Timing], results: Mapping[str, str | float]
    ) -> None:
        """Add a row, in place of an earlier one of the same case, and write the report's file."""
        seconds = {name: asdict(timing) for name, timing in timings.items()}
        row = {"case": dict(case), "seconds": seconds, "results": dict(results)}
        with self._report.lock:
            cases = [other["case"] for other in self.rows]
            place = cases.index(row["case"]) if row["case"] in cases else len(cases)
            self.rows[place : place + 1] = [row]
            self._report.save()

    def lines(self) -> list[str]:
        """For people: right-aligned columns."""
        cells = [list(self.rows[0]["case"] | self.rows[0]["results"])]
        cells += [list(map(_cell, (row["case"] | row["results"]).values())) for row in self.rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        return ["  ".join(c.rjust(w) for c, w in zip(row, widths, strict=True)) for row in cells]


class GpuReport:
    """All that is measured, in a JSON file as soon as it is there, and as tables at the end.

    Args:
        options: of the command line: `json`, the file or None, and `until`, None or the time of the clock
            at which :meth:`finish` is called and the process ends, wherever the run is.
        device: that the benchmark runs on.
    """

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self._started = time.monotonic()
        self._path: Path | None = options.json
        self._judged = device.type == "cuda"
        self._tables: dict[str, Table] = {}
        self._goals: dict[str, dict[str, Any]] = {}
        self._parts = dict[str, str]()
        self._comparisons, self._wrong = 0, list[str]()
        self.lock = threading.RLock()  # the clock may end the run while a row is being added
        self._head = {
            "benchmark": "gpu",
            "settings": {name: value for name, value in vars(options).items() if name != "json"},
            "machine": {
                "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                **describe(device),
                **environment(),
            },
        }
        shown = ("date", "device", "driver", "runtime", "torch", "triton")
        print("benchmarks.gpu:", ", ".join(f"{name} {self.machine[name]}" for name in shown), flush=True)
        if options.until is not None:
            seconds = options.until - LAST_WORDS - time.time()
            clock = threading.Timer(max(0.0, seconds), self._time_is_up)
            clock.daemon = True
            clock.start()

    @property
    def machine(self) -> dict[str, Any]:
        """The device and the versions of what runs on it."""
        return self._head["machine"]

    @property
    def troubled(self) -> bool:
        """Whether something is wrong or failed; what time was too short for is neither."""
        ends = (DONE, RUNNING, NOT_REACHED)
        return bool(self._wrong) or any(how not in ends for how in self._parts.values())

    def plan(self, parts: Sequence[str]) -> None:
        """Name what the run is made of, in order."""
        self._parts = dict.fromkeys(parts, NOT_REACHED)

    def begin(self, part: str) -> None:
        """`part` is cut off from now on, until :meth:`end` says otherwise."""
        self._parts[part] = RUNNING
        print(f"{time.monotonic() - self._started:6.1f} s  {part}", flush=True)

    def end(self, part: str, how: str = DONE) -> None:
        """`how` it ended: done, or a sentence that says why not."""
        with self.lock:
            self._parts[part] = how
            self.save()
        if how != DONE:
            print(f"          {how}", flush=True)

    def compared(self, comparisons: int, wrong: Sequence[str]) -> None:
        """Count comparisons with what is right, and those that failed."""
        with self.lock:
            self._comparisons += comparisons
            self._wrong += wrong

    def table(self, name: str, caption: str) -> Table:
        """The table of that name, begun or gone on with; its first row tells the columns."""
        return self._tables.setdefault(name, Table(self, caption))

    def goal(self, name: str, figure: float, *, at_least: float | None = None, below: float = 0.0) -> None:
        """Set a figure beside its goal: `at_least`, or else at most `below`."""
        met = figure >= at_least if at_least is not None else figure <= below
        wanted = f">= {at_least:g}" if at_least is not None else f"<= {below:g}"
        self._goals[name] = {"goal": name, "wanted": wanted, "figure": figure, "met": met}

    def save(self) -> None:
        """Write all that there is so far to the JSON file, if one was asked for; it is whole at any time."""
        if self._path is None:
            return
        report = self._head | {
            "seconds": time.monotonic() - self._started,
            "parts": self._parts,
            "comparisons": self._comparisons,
            "wrong": self._wrong,
            "tables": {name: table.rows for name, table in self._tables.items() if table.rows},
            "goals": list(self._goals.values()) if self._judged else [],
        }
        scratch = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        scratch.write_text(json.dumps(report, indent=2) + "\n")
        scratch.replace(self._path)

    def finish(self) -> None:
        """Save, and print all tables, what is wrong or was not reached, and the goals of an H100 or H200."""
        with self.lock:
            self.save()
            for name, table in self._tables.items():
                if table.rows:
                    print("\n".join(["", f"{name}: {table.caption}", *table.lines()]))
            print(f"\n{self._comparisons - len(self._wrong)} of {self._comparisons} comparisons are right")
            print("\n".join(f"  wrong: {what}" for what in self._wrong), end="\n" * bool(self._wrong))
            for part, how in self._parts.items():
                if how != DONE:
                    print(f"  {part}: {how}")
            for goal in self._goals.values() if self._judged else ():
                verdict = "met" if goal["met"] else "missed"
                print(f"  {verdict:6}  {goal['goal']} {goal['wanted']}: {goal['figure']:.3g}")
            print(end="", flush=True)

    def _time_is_up(self) -> None:
        with self.lock:
            print("\nbenchmarks.gpu: the time is up")
            self.finish()
            for process in multiprocessing.active_children():
                process.kill()
            os._exit(1 if self.troubled else 0)  # the main thread may be inside a compiler


def describe(device: torch.device) -> dict[str, Any]:
    """The GPU, its driver, and the runtime that torch was built for."""
    if device.type != "cuda":
        return {"device": str(device), "driver": None, "runtime": None}
    properties = torch.cuda.get_device_properties(device)
    runtime = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
    return {
        "device": properties.name,
        "driver": _driver_version(),
        "runtime": runtime,
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_cache_bytes": l2_cache(device),
    }


def l2_cache(device: torch.device) -> int:
    """Bytes of the last-level cache of a GPU; 0 for a CPU, whose caches no benchmark here avoids."""
    if device.type != "cuda":
        return 0
    return int(torch.cuda.get_device_properties(device).L2_cache_size)


def _driver_version() -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(command, capture_output=True, text=True).stdout.split()
    return answer[0] if answer else None


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}" if abs(value) < 1e6 else f"{value:.4g}"
