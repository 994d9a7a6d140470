"""What bench_gpu tells: tables for people with the goals beside them, JSON for programs."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime, timezone
from typing import Any

import torch

from benchmarks.harness import Timing
from mobizo_kernels.cli.environment import environment


class GpuReport:
    """Tables one after another, the goals at the end, and all of it with the device in a JSON file.

    Args:
        options: of the command line; `json` is the file or None.
        device: that the benchmark runs on.
    """

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self._options, self._judged = options, device.type == "cuda"
        self._tables: dict[str, list[dict[str, Any]]] = {}
        self._goals: list[dict[str, Any]] = []
        self._widths: dict[str, int] = {}
        self._machine = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            **describe(device),
            **environment(),
        }
        shown = ("date", "device", "driver", "runtime", "torch", "triton")
        print("bench_gpu:", ", ".join(f"{name} {self._machine[name]}" for name in shown), flush=True)

    def table(self, name: str, caption: str) -> None:
        """Begin a table; its first row tells the columns."""
        self._tables[name] = []
        print(f"\n{name}: {caption}")

    def add(
        self, case: Mapping[str, object], timings: Mapping[str, Timing], results: Mapping[str, str | float]
    ) -> None:
        """A row of the latest table; the JSON file holds the timings, in seconds per call, as well."""
        rows, row = list(self._tables.values())[-1], {**case, **results}
        cells = {
            name: f"{value:.3f}" if isinstance(value, float) else str(value) for name, value in row.items()
        }
        if not rows:
            self._widths = {name: max(len(name), len(cell) + 2) for name, cell in cells.items()}
            print("  ".join(name.rjust(width) for name, width in self._widths.items()))
        print("  ".join(cell.rjust(self._widths[name]) for name, cell in cells.items()), flush=True)
        seconds = {name: asdict(timing) for name, timing in timings.items()}
        rows.append({"case": dict(case), "seconds": seconds, "results": dict(results)})

    def goal(self, name: str, figure: float, *, at_least: float | None = None, below: float = 0.0) -> None:
        """Set a figure beside its goal: `at_least`, or else at most `below`."""
        met = figure >= at_least if at_least is not None else figure <= below
        wanted = f">= {at_least:g}" if at_least is not None else f"<= {below:g}"
        self._goals.append({"goal": name, "wanted": wanted, "figure": figure, "met": met})

    def save(self) -> None:
        """Write the JSON file, if one was asked for, with all that there is so far."""
        if self._options.json is None:
            return
        settings = {name: value for name, value in vars(self._options).items() if name != "json"}
        report = {"benchmark": "gpu", "settings": settings, "machine": self._machine}
        report |= {"tables": self._tables, "goals": self._goals if self._judged else []}
        self._options.json.write_text(json.dumps(report, indent=2) + "\n")

    def finish(self) -> None:
        """Print the goals, those of an H100 or H200, and save."""
        if self._goals and self._judged:
            print("\ngoals")
            for goal in self._goals:
                verdict = "met" if goal["met"] else "missed"
                print(f"  {verdict:6}  {goal['goal']} {goal['wanted']}: {goal['figure']:.3g}")
        self.save()


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
