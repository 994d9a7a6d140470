"""Plots of a study of recipes: accuracy over time for each method, and what each change does to the AUC."""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.lines import Line2D

from benchmarks.study.recipe import METHODS, changes, read


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("files", nargs="+", type=Path, help="of benchmarks.study.recipe")
    options.add_argument("--out", type=Path, required=True, help="directory for the plots")
    options.add_argument("--seconds", type=float, default=60.0, help="budget of the methods to plot")
    arguments = options.parse_args()
    lines = [line for file in arguments.files for line in read(file)]
    methods = [
        line
        for line in lines
        if (line["part"], line["recipe"]["seconds"]) == ("methods", arguments.seconds) and line["steps"]
    ]
    factors = [line for line in lines if line["part"] == "factors"]
    if methods:
        plot_methods(methods, arguments.out / "study_methods.png")
    if factors:
        plot_factors(factors, arguments.out / "study_factors.png")


def plot_methods(lines: list[dict[str, Any]], path: Path) -> None:
    """Validation accuracy over seconds, a panel for each task; thin lines are seeds. What was run with one
    seed is for the tables alone.
    """
    tasks = sorted({line["recipe"]["task"] for line in lines}, reverse=True)
    seeds = {name: {line["recipe"]["seed"] for line in lines if line["name"] == name} for name in METHODS}
    names = [name for name in METHODS if len(seeds[name]) > 1]
    figure, axes = plt.subplots(1, len(tasks), figsize=(5 * len(tasks), 3.6), squeeze=False)
    for axis, task in zip(axes[0], tasks, strict=True):
        for number, name in enumerate(names):
            for line in lines:
                if (line["recipe"]["task"], line["name"]) == (task, name):
                    points = line["curve"]
                    axis.plot(
                        [point["seconds"] for point in points],
                        [100 * point["accuracy"] for point in points],
                        color=f"C{number}", lw=1.2,
                    )  # fmt: skip
        axis.set(title=task, xlabel="seconds of one thread", ylabel="balanced accuracy, validation [%]")
        axis.grid(alpha=0.3)
    colours = [Line2D([], [], color=f"C{number}", label=name) for number, name in enumerate(names)]
    axes[0][0].legend(handles=colours, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def plot_factors(lines: list[dict[str, Any]], path: Path) -> None:
    """AUC on the test rows at the end of a run for each change, medians over seeds."""
    groups: dict[tuple[str, str], list[float]] = {}
    for line in lines:
        key = line["name"], changes(line)
        groups.setdefault(key, []).append(line["last"]["auc"])
    labels = [changed or "nothing" for _, changed in groups]
    values = [median(scores) for scores in groups.values()]
    figure, axis = plt.subplots(figsize=(7.5, 0.24 * len(labels) + 1))
    axis.barh(range(len(labels)), values, color=["C0" if changed else "C1" for _, changed in groups])
    axis.set_yticks(range(len(labels)), labels, fontsize=7)
    axis.invert_yaxis()
    for (_, changed), value in zip(groups, values, strict=True):
        if not changed:
            axis.axvline(value, color="C1", lw=0.8)
    axis.set(xlabel="AUC on the test rows", xlim=(min(values) - 0.02, max(values) + 0.01))
    figure.tight_layout()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
