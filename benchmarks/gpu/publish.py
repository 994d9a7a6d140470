"""Puts results of bench.py into docs: tables into gpu.md, a picture of the steps beside it.

    python -m benchmarks.gpu.publish benchmarks/results/gpu-*.json --docs docs

A run that was cut off gives the tables that it had come to. Refuses a file of a run without a GPU: its times
mean nothing.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from benchmarks.gpu.report import DONE

MARKER = "<!-- results -->"
PICTURE = "steps.png"
PAGE_WIDTH = 100


def results(run: dict[str, Any], path: str) -> list[str]:
    """Markdown: the machine, what was not reached, the goals, and every table of a run."""
    machine = run["machine"]
    facts = ", ".join(f"{name} {machine[name]}" for name in ("driver", "runtime", "torch", "triton", "date"))
    quick = ", quick: small sizes, models of 4 layers" if run["settings"]["quick"] else ""
    lines = [
        f"### {machine['device']}, stage {run['settings']['stage'] or 'ops and steps'}{quick}",
        textwrap.fill(
            f"{facts}; `{path}`. Comparisons: {run['comparisons']}, of which wrong: {len(run['wrong'])}.",
            PAGE_WIDTH,
            break_long_words=False,
            break_on_hyphens=False,
        ),
    ]
    lines += [f"\nWrong: {what}." for what in run["wrong"]]
    unfinished = [f"{part} ({how})" for part, how in run["parts"].items() if how != DONE]
    if unfinished:
        lines += ["", textwrap.fill(f"Not measured in full: {', '.join(unfinished)}.", PAGE_WIDTH)]
    if run["goals"]:
        lines += ["", "| goal | wanted | measured | |", "|---|---|---|---|"]
    for goal in run["goals"]:
        verdict = "met" if goal["met"] else "missed"
        lines.append(f"| {goal['goal']} | {goal['wanted']} | {goal['figure']:.3g} | {verdict} |")
    for name, rows in run["tables"].items():
        columns = [*rows[0]["case"], *rows[0]["results"]]
        lines += ["", f"**{name}**", "", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        lines += [
            "| " + " | ".join(map(_cell, {**row["case"], **row["results"]}.values())) + " |" for row in rows
        ]
    return [*lines, ""]


def picture(runs: list[dict[str, Any]], path: Path) -> bool:
    """Time of a step over the bare forward: the first case of every whole run with one. Whether any has."""
    whole = [run for run in runs if not run["settings"]["quick"]]
    told = [(run["machine"]["device"], _ratios(run["tables"].get("step", []))) for run in whole]
    told = [(device, ratios) for device, ratios in told if ratios]
    if not told:
        return False
    figure, axes = plt.subplots(1, len(told), figsize=(6 * len(told), 3.6), squeeze=False)
    for axis, (device, ratios) in zip(axes[0], told, strict=True):
        axis.barh(list(ratios), list(ratios.values()))
        axis.invert_yaxis()
        axis.axvline(1.0, color="black", lw=0.8)
        axis.set(title=device, xlabel="time of a step / bare forward of the same rows")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    return True


def _ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """By step, in the first setting of a table; without what has no ratio, for the limit was not measured."""
    first = [row for row in rows if _setting(row) == _setting(rows[0])]
    ratios = {row["case"]["step"]: row["results"]["time / bare"] for row in first}
    return {step: ratio for step, ratio in ratios.items() if isinstance(ratio, float)}


def _setting(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row["case"].items() if name != "step"}


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("files", nargs="+", type=Path, help="of benchmarks.gpu.bench")
    options.add_argument("--docs", required=True, type=Path, help="directory of gpu.md")
    arguments = options.parse_args()
    runs = [json.loads(file.read_text()) for file in arguments.files]
    for file, run in zip(arguments.files, runs, strict=True):
        if run["machine"]["driver"] is None:
            raise SystemExit(f"benchmarks.gpu: {file} is of a run without a GPU: its times mean nothing")
    page = arguments.docs / "gpu.md"
    before, _, after = page.read_text().split(MARKER)
    lines = [
        line for file, run in zip(arguments.files, runs, strict=True) for line in results(run, str(file))
    ]
    if picture(runs, arguments.docs / PICTURE):
        lines.append(f"![Time of a step over the bare forward]({PICTURE})")
    text = "\n".join(lines)
    page.write_text(f"{before}{MARKER}\n{text}\n{MARKER}{after}")


if __name__ == "__main__":
    main()
