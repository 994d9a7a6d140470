"""Puts results of bench_gpu into docs: tables into performance.md, a picture of the steps beside it.

    python -m benchmarks.gpu_publish benchmarks/results/gpu-*.json --docs docs

Refuses a file of a run without a GPU: its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MARKER = "<!-- results -->"
PICTURE = "gpu_steps.png"


def results(run: dict[str, Any], path: str) -> list[str]:
    """Markdown: the machine, the goals, and every table of a run."""
    machine = run["machine"]
    facts = ", ".join(f"{name} {machine[name]}" for name in ("driver", "runtime", "torch", "triton", "date"))
    lines = [
        f"### {machine['device']}",
        f"{facts}; `{path}`.",
        "",
        "| goal | wanted | measured | |",
        "|---|---|---|---|",
    ]
    for goal in run["goals"]:
        verdict = "met" if goal["met"] else "missed"
        lines.append(f"| {goal['goal']} | {goal['wanted']} | {goal['figure']:.3g} | {verdict} |")
    for name, rows in run["tables"].items():
        if rows:
            columns = [*rows[0]["case"], *rows[0]["results"]]
            lines += ["", f"**{name}**", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
            lines += [
                "| " + " | ".join(map(_cell, {**row["case"], **row["results"]}.values())) + " |"
                for row in rows
            ]
    return [*lines, ""]


def picture(runs: list[dict[str, Any]], path: Path) -> None:
    """Time of a step over the bare forward: the first case of every run."""
    figure, axes = plt.subplots(1, len(runs), figsize=(6 * len(runs), 3.6), squeeze=False)
    for axis, run in zip(axes[0], runs, strict=True):
        rows = run["tables"].get("step", [])
        first = [row for row in rows if _setting(row) == _setting(rows[0])]
        told = [(row["case"]["step"], row["results"]["time / bare"]) for row in first]
        told = [(name, ratio) for name, ratio in told if isinstance(ratio, float)]
        axis.barh([name for name, _ in told], [ratio for _, ratio in told])
        axis.invert_yaxis()
        axis.axvline(1.0, color="black", lw=0.8)
        axis.set(title=run["machine"]["device"], xlabel="time of a step / bare forward of the same rows")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def _setting(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row["case"].items() if name != "step"}


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("files", nargs="+", type=Path, help="of benchmarks.bench_gpu")
    options.add_argument("--docs", required=True, type=Path, help="directory of performance.md")
    arguments = options.parse_args()
    runs = [json.loads(file.read_text()) for file in arguments.files]
    for file, run in zip(arguments.files, runs, strict=True):
        if run["machine"]["driver"] is None:
            raise SystemExit(f"gpu_publish: {file} is of a run without a GPU: its times mean nothing")
    page = arguments.docs / "performance.md"
    before, _, after = page.read_text().split(MARKER)
    lines = [
        line for file, run in zip(arguments.files, runs, strict=True) for line in results(run, str(file))
    ]
    text = "\n".join([*lines, f"![Time of a step over the bare forward]({PICTURE})"])
    page.write_text(f"{before}{MARKER}\n{text}\n{MARKER}{after}")
    picture(runs, arguments.docs / PICTURE)


if __name__ == "__main__":
    main()
