"""Builds driver.cpp and talks to processes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.executorch.cases import ROOT, Case, Files

BUILD = ROOT / "build" / "bench_executorch"
TARGET = "executorch_driver"


def build_driver() -> Path:
    """Build what is not up to date; the path of the program."""
    spec = find_spec("executorch")
    if spec is None or spec.submodule_search_locations is None:
        raise SystemExit("benchmarks.executorch: ExecuTorch is missing; pip install executorch==1.5.1")
    sdk = Path(spec.submodule_search_locations[0], "share", "cmake")
    source = ROOT / "benchmarks/executorch"
    tools = Path(sys.executable).parent  # the environment's cmake, which need not be on PATH
    cmake = str(tools / "cmake") if (tools / "cmake").is_file() else "cmake"
    for command in (
        [cmake, "-S", str(source), "-B", str(BUILD), f"-Dexecutorch_DIR={sdk}"],
        [cmake, "--build", str(BUILD), "--target", TARGET, "--parallel", str(os.cpu_count() or 1)],
    ):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(
                f"benchmarks.executorch: {' '.join(command)} failed:\n{done.stdout}{done.stderr}"
            )
    return BUILD / TARGET


class Worker:
    """A process that holds one program and steps it when told to.

    Attributes:
        planned: bytes of the arenas.
        first: the answer to the first step.
        latest: that to the latest: seconds, loss, and the peak and the anonymous part of the resident bytes.
    """

    def __init__(self, driver: Path, case: Case, files: Files, threads: int) -> None:
        command = [
            driver,
            files.program,
            case.method,
            files.arguments,
            str(threads),
            str(int(case.weight_cache)),
        ]
        self._name = case.name
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.planned: int = self._answer()["planned"]
        self.first: dict[str, Any] = {}
        self.latest: dict[str, Any] = {}

    def step(self) -> None:
        """Make a step."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        self.latest = self._answer()
        self.first = self.first or self.latest

    @property
    def busy(self) -> float:
        """Seconds of processor time of the process so far, all of its threads together."""
        times = Path(f"/proc/{self._process.pid}/task").glob("*/schedstat")
        return sum(int(file.read_text().split()[0]) for file in times) / 1e9

    def finish(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"benchmarks.executorch: {self._name} failed; its own error is above")
        return dict(json.loads(line))
