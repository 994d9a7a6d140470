"""What makes learning by forward passes fast: a run for each recipe, kept in a file that later calls add to.

Every run tunes SmolLM2-135M within a budget of processor time of one thread and is scored on rows that
decided nothing. `--part factors` changes one thing at a time; `--part methods` compares the defaults of
`mobizo train` with other methods over tasks and seeds. A run that is in the file already is not made again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.harness import machine
from benchmarks.study.runs import run
from benchmarks.study.setting import Recipe

TASKS = ("rotten-tomatoes", "boolq", "reuters-r8")
# The steps of the defaults at the rate that suits them without a readout before.
OURS = Recipe(lr=0.2)
# MobiZO, arXiv 2409.15520: rank 16, all linears, eps 1e-2, effective batch of 16, constant rate up to 1e-3.
PUBLISHED = Recipe(
    tail=0, layers="top-100%", rank=16, queries=1, batch_size=16, distribution="gaussian", normalize=False,
    decay=False, lr=1e-3, eps=1e-2,
)  # fmt: skip
# Around which one thing is changed at a time: the defaults with a step of half their price.
VARIED = replace(OURS, queries=8, lr=0.1, eps=5e-2)
# With as many forwarded tokens as OURS: one of a row where that has two, one group of a query where two.
ONE_TOKEN = replace(OURS, tail=1, estimator="centred", distribution="outer", queries=128, lr=0.4)
# As many steps for both ways to make them.
ALL = replace(OURS, method="all", distribution="outer", queries=8, eps=1e-3, lr=1e-2, max_steps=60)
METHODS = {
    "ours": OURS,
    "ours, q=8": VARIED,
    "ours, states kept": replace(OURS, kept=True, train_rows=512),
    "ours, centred": replace(OURS, estimator="centred", queries=64, lr=0.4),
    "ours, centred, one token": ONE_TOKEN,
    "readout": replace(OURS, method="none", readout_rows=1280),
    "readout of layers": replace(OURS, method="none", readout_rows=1280, readout_layers="several"),
    "readout, best layer": replace(OURS, method="best-layer", readout_rows=1280),
    "readout, several layers": replace(OURS, method="layers", readout_rows=1280),
    "readout, ours": replace(OURS, readout_rows=1280),
    "readout of 480 rows, ours": replace(OURS, readout_rows=480),
    "readout, ours, half the rate": replace(OURS, readout_rows=1280, lr=0.1),
    "readout of layers, ours, half the rate": replace(
        OURS, readout_rows=1280, readout_layers="several", lr=0.1
    ),
    "readout, ours, a quarter of the rate": replace(OURS, readout_rows=1280, lr=0.05),
    "readout, ours, queries grow": replace(OURS, readout_rows=1280, lr=0.1, queries=16, stages=3),
    # A step of every block is as long as one of all parameters is: half the rate for four of them.
    "readout, ours, in blocks": replace(OURS, readout_rows=1280, lr=0.05, blocks=4),
    "readout, centred": replace(OURS, estimator="centred", queries=64, readout_rows=1280),
    "readout, centred, one token": replace(ONE_TOKEN, readout_rows=1280, lr=0.1),
    "MeZO LoRA-FA": replace(PUBLISHED, method="mezo"),
    "P-RGE, q=4 B=4": replace(PUBLISHED, queries=4, batch_size=4),
    "first-order LoRA-FA": replace(PUBLISHED, method="first-order", decay=True, lr=2e-3),
    "first-order, tail": replace(VARIED, method="first-order", batch_size=16, lr=2e-3),
    "first-order, tail alone": replace(OURS, method="first-order-kept", lr=2e-3),
    "readout, first-order, tail alone": replace(OURS, method="first-order-kept", lr=2e-3, readout_rows=1280),
    "all parameters": ALL,
    "all parameters, in turn": replace(ALL, method="all-in-turn", distribution="gaussian"),
    # What ours would do with an exact gradient in place of an estimate.
    "exact gradient, tail": replace(OURS, method="exact-gradient"),
    "readout, exact gradient, tail alone": replace(OURS, method="exact-gradient-kept", readout_rows=1280),
}
FACTORS: dict[str, list[dict[str, Any]]] = {
    "sharing": [
        {"tail": 0, "batch_size": 4}, {"tail": 1}, {"tail": 4}, {"kept": True, "train_rows": 512},
    ],
    "noise": [{"distribution": "gaussian"}],
    "estimator": [{"estimator": "one_sided", "queries": 15}],
    "normalisation": [{"normalize": False, "lr": 3e-2}, {"normalize": False, "lr": 1e-1}],
    "optimizer": [
        {"momentum": 0.9, "lr": 0.01}, {"momentum": 0.9, "lr": 0.03}, {"optimizer": "adam", "lr": 4e-3},
        {"optimizer": "adam", "lr": 1e-2}, {"optimizer": "sign", "lr": 1e-3},
        {"optimizer": "sign", "lr": 4e-3},
    ],
    "q and B": [
        {"queries": 2, "batch_size": 32}, {"queries": 4, "batch_size": 16}, {"queries": 16, "batch_size": 4},
    ],
    "targets": [
        {"targets": "v_proj"}, {"targets": "q_proj,v_proj"}, {"targets": "q_proj,o_proj"},
        {"targets": "gate_proj,up_proj,down_proj"},
    ],
    "rank": [{"rank": 2}, {"rank": 4}, {"rank": 16}],
    "layers": [{"layers": "top-33%"}, {"layers": "top-100%"}],
    "eps": [{"eps": 1e-2}, {"eps": 1e-1}],
    "learning rate": [{"lr": 0.05}, {"lr": 0.2}],
}  # fmt: skip


def cells(options: argparse.Namespace) -> Iterator[tuple[str, Recipe]]:
    """The runs that are asked for, with what each is called."""
    common: dict[str, Any] = {"seconds": 2.0 if options.quick else options.seconds}
    if options.part == "factors":
        for seed in range(options.seeds):
            yield "base", replace(VARIED, seed=seed, **common)
            for factor, changes in FACTORS.items():
                for change in changes:
                    yield factor, replace(VARIED, **change, seed=seed, **common)
        return
    names = options.methods or METHODS
    for seed in range(options.seeds):
        for task in options.tasks:
            for name in names:
                recipe = replace(METHODS[name], task=task, seed=seed, **common, **options.change)
                if options.quick:
                    recipe = replace(recipe, readout_rows=min(recipe.readout_rows, 32))
                yield name, recipe


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    made = read(options.out)
    for name, recipe in () if options.summary else cells(options):
        key = asdict(recipe)
        if any(line["recipe"] == key and line["name"] == name for line in made):
            continue
        line = {"name": name, "part": options.part, "recipe": key, "machine": machine(), **run(recipe)}
        made.append(line)
        with options.out.open("a") as file:  # at once: a study that is stopped goes on from here
            file.write(json.dumps(line) + "\n")
        print(_row(line), flush=True)
    summarize(made)


def read(path: Path) -> list[dict[str, Any]]:
    """The runs in a file of this study, none if it is not there; a line that was cut off does not count. What
    a recipe has not heard of was at its default.
    """
    return [{**line, "recipe": asdict(Recipe()) | line["recipe"]} for line in read_lines(path)]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of lines of JSON, none if it is not there; what was cut off is left out."""
    lines = []
    for text in path.read_text().splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):
            lines.append(json.loads(text))
    return lines


def changes(line: dict[str, Any]) -> str:
    """How the recipe of a run differs from what its factor is changed from, or from its method's today."""
    skipped = {"seed", "task", "seconds", "selection_rows"}
    base = asdict(VARIED if line["part"] == "factors" else METHODS[line["name"]])
    return ", ".join(
        f"{name}={value}"
        for name, value in line["recipe"].items()
        if name not in skipped and value != base[name]
    )


def summarize(lines: list[dict[str, Any]]) -> None:
    """One line for each recipe, task and budget, of the adapters at the end: medians, and what seeds had."""
    groups: dict[tuple[str, float, str, str], list[dict[str, Any]]] = {}
    for line in lines:
        recipe = line["recipe"]
        groups.setdefault((recipe["task"], recipe["seconds"], line["name"], changes(line)), []).append(line)
    head = ("task", "seconds", "", "changed", "readout", "steps", "ktok", "accuracy", "AUC", "75 % after")
    print("\n| " + " | ".join(head) + " |" + "\n" + "|---" * len(head) + "|")
    for (task, seconds, name, changed), runs in groups.items():
        runs = sorted(runs, key=lambda line: line["recipe"]["seed"])
        accuracy = _of_seeds([100 * line["last"]["accuracy"] for line in runs], ".1f", " %")
        auc = _of_seeds([line["last"]["auc"] for line in runs], ".3f")
        steps, tokens = (median(line[figure] for line in runs) for figure in ("steps", "tokens"))
        read_out = [f"{line['readout']['seconds']:.0f} s" for line in runs if "readout" in line]
        reached = [f"{at:.0f} s" if (at := seconds_to(line, 0.75)) is not None else "-" for line in runs]
        print(
            f"| {task} | {seconds:g} | {name} | {changed} | {', '.join(read_out)} | {steps:.0f} "
            f"| {tokens / 1e3:.0f} | {accuracy} | {auc} | {', '.join(reached)} |"
        )


def _of_seeds(values: list[float], form: str, unit: str = "") -> str:
    """The median, and in brackets what each seed had, if there are several."""
    middle = format(median(values), form) + unit
    return middle if len(values) == 1 else f"{middle} ({', '.join(format(value, form) for value in values)})"


def seconds_to(line: dict[str, Any], accuracy: float) -> float | None:
    """When a run was first seen at an accuracy on the validation rows; None if never. A run is looked at ten
    times, and before it begins.
    """
    return next((point["seconds"] for point in line["curve"] if point["accuracy"] >= accuracy), None)


def _row(line: dict[str, Any]) -> str:
    last, recipe = line["last"], line["recipe"]
    return (
        f"{recipe['task']:16} {line['name']:20} seed {recipe['seed']} {line['steps']:5} steps "
        f"accuracy {last['accuracy']:.1%} AUC {last['auc']:.3f}  {changes(line)}"
    )


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--part", choices=("factors", "methods"), default="factors")
    options.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="runs are added to it")
    options.add_argument("--seconds", type=float, default=60.0, help="budget of a run")
    options.add_argument("--seeds", type=int, default=1, help="runs of each recipe")
    options.add_argument("--tasks", nargs="+", default=list(TASKS))
    options.add_argument("--methods", nargs="+", choices=METHODS, help="of part methods; all by default")
    options.add_argument(
        "--change", nargs="+", type=_change, default=[], metavar="NAME=VALUE", help="of part methods' recipes"
    )
    options.add_argument("--summary", action="store_true", help="tables of what is in the file, and no run")
    options.add_argument("--quick", action="store_true", help="two seconds a run: a smoke test")
    found = options.parse_args()
    found.change = dict(found.change)
    return found


def _change(text: str) -> tuple[str, Any]:
    """A field of a recipe and its value."""
    name, _, value = text.partition("=")
    kind = type(getattr(OURS, name))
    return name, value == "True" if kind is bool else kind(value)


if __name__ == "__main__":
    main()
