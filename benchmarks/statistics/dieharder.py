"""The words of the noise through dieharder (Brown, Eddelbuettel, Bauer), all of its tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_RAW_FROM_STDIN = "200"


@dataclass(frozen=True)
class Outcome:
    """How many of dieharder's p-values it calls passed, weak (p < 0.005) and failed (p < 0.000001)."""

    order: str
    passed: int
    weak: list[str]
    failed: list[str]


def run(program: Path, order: str, run_seed: int, test: int | None = None) -> Outcome:
    """All tests, or the one of a number, on the words in `order`.

    A weak result is repeated with more words until it is clear: of right words one in a hundred is weak.
    Each result goes to stderr as it comes, since all of them take hours.

    Raises:
        RuntimeError: dieharder is not installed, or ends with an error.
    """
    if shutil.which("dieharder") is None:
        raise RuntimeError("dieharder is not installed: apt install dieharder")
    which = ["-a"] if test is None else ["-d", str(test)]
    # -k 2: exact p-values; -Y 1: weak ones are resolved; -c: commas between columns; -D: these columns
    columns = [option for name in ("test_name", "ntuple", "pvalues", "assessment") for option in ("-D", name)]
    command = ["dieharder", "-g", _RAW_FROM_STDIN, *which, "-k", "2", "-Y", "1", "-c", ",", *columns]
    with subprocess.Popen([program, order, str(run_seed)], stdout=subprocess.PIPE) as words:
        with subprocess.Popen(command, stdin=words.stdout, stdout=subprocess.PIPE, text=True) as tests:
            assert tests.stdout is not None
            lines = []
            for line in tests.stdout:
                lines.append(line)
                print(f"{order}: {line.strip()}", file=sys.stderr, flush=True)
        words.kill()
    if tests.returncode != 0:
        raise RuntimeError(f"dieharder ended with {tests.returncode}")
    return summary(order, "".join(lines))


def summary(order: str, table: str) -> Outcome:
    """What dieharder's lines `name,ntuple,p,assessment` say."""
    told: dict[str, list[str]] = {"PASSED": [], "WEAK": [], "FAILED": []}
    for line in table.splitlines():
        parts = [part.strip() for part in line.split(",")]
        if len(parts) == 4 and parts[3] in told:
            told[parts[3]].append(f"{parts[0]}({parts[1]}) p={parts[2]}")
    if not any(told.values()):
        raise RuntimeError(f"dieharder printed no result: {table[:200]!r}")
    return Outcome(order, len(told["PASSED"]), told["WEAK"], told["FAILED"])
