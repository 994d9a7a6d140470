"""Every method of the recipe study runs, on a tiny model: its runs are read, and its tables printed."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from transformers import LlamaConfig

from benchmarks.study import first_order, readouts, recipe, runs, setting, steps
from benchmarks.study.recipe import METHODS
from benchmarks.study.setting import Material, Recipe
from mobizo_kernels.data import EncodedExample, collate
from mobizo_kernels.lora import adapter_of, tuned_layers

WORDS, ENDING = (5, 9), [3, 4]
BESIDE = ("best-layer", "layers")  # the model, which they leave as it is


def rows(count: int, rng: torch.Generator) -> list[EncodedExample]:
    """Texts that end on their label's token and the invocation tokens."""
    texts = torch.randint(20, tiny.VOCABULARY, (count, 5), generator=rng).tolist()
    return [
        EncodedExample([*text[: 2 + number % 4], *3 * [10 + label], *ENDING, WORDS[label]], label)
        for number, text in enumerate(texts)
        for label in [number % 2]
    ]


def load_model(*_: Any) -> tuple[Any, Any]:
    config = LlamaConfig(**{**tiny.SIZES, "num_hidden_layers": 4}, num_key_value_heads=2)
    return tiny.causal_lm(config), SimpleNamespace(pad_token_id=0)


@pytest.fixture(autouse=True)
def tiny_study(monkeypatch: pytest.MonkeyPatch, rng: torch.Generator) -> Iterator[None]:
    train, validation, test, selection = (rows(count, rng) for count in (80, 40, 40, 10))
    data = Material(train, validation, test, selection, WORDS, 0)
    monkeypatch.setattr(runs, "material", lambda *_: data)
    for module in (first_order, readouts, setting):
        monkeypatch.setattr(module, "load_model", load_model)
    kept = runs.prefix_states, readouts.layer_states
    for cached in kept:
        cached.cache_clear()
    yield
    for cached in kept:
        cached.cache_clear()


def small(found: Recipe) -> Recipe:
    """Two steps of a method, without a word about seconds."""
    return replace(
        found,
        readout_rows=min(found.readout_rows, 60),
        queries=min(found.queries, 4),
        batch_size=4,
        max_steps=2,
        seconds=math.inf,
        selection_rows=10,
        dtype="float32",
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs(name: str) -> None:
    wanted = small(METHODS[name])
    found = runs.run(wanted)
    assert found["steps"] == (0 if wanted.method in ("none", *BESIDE) else 2)
    assert ("readout" in found) == bool(wanted.readout_rows) and found["tokens"] > 0
    for end in [found[end] for end in ("last", "best", "readout") if end in found]:
        assert 0 <= end["accuracy"] <= 1 and 0 <= end["auc"] <= 1
        assert wanted.method in BESIDE or 0 <= end["selection"]["auc"] <= 1
    steps = [point["steps"] for point in found["curve"]]
    assert steps == sorted(steps) and len(steps) == (0 if wanted.method in BESIDE else found["steps"] + 1)


def test_a_readout_learns() -> None:
    """The label is a token of the text: a run that scored other rows or another model would not show it."""
    for name in ("readout", "readout, several layers"):
        assert runs.run(small(METHODS[name]))["last"]["accuracy"] > 0.9


def test_runs_are_kept_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = argparse.Namespace(
        part="methods", methods=["readout", "ours"], tasks=["boolq"], seeds=2, seconds=60.0, quick=False,
        change={"lr": 0.3},
    )  # fmt: skip
    cells = list(recipe.cells(options))
    assert [(name, found.seed, found.lr) for name, found in cells] == [
        ("readout", 0, 0.3), ("ours", 0, 0.3), ("readout", 1, 0.3), ("ours", 1, 0.3),
    ]  # fmt: skip
    file = tmp_path / "study.jsonl"
    with file.open("w") as out:
        for name, found in cells:
            line = {"name": name, "part": "methods", "recipe": asdict(found), **runs.run(small(found))}
            out.write(json.dumps(line) + "\n")
        out.write('{"name": "cut o')
    recipe.summarize(recipe.read(file))
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| boolq")]
    assert len(printed) == 2 and all("lr=0.3" in line for line in printed)


def test_factors_change_one_thing() -> None:
    options = argparse.Namespace(part="factors", seeds=1, seconds=60.0, quick=True)
    (_, base), *others = recipe.cells(options)
    assert base.seconds == 2 and len(others) == sum(map(len, recipe.FACTORS.values()))
    assert all(found != base for _, found in others)


def test_the_runs_in_the_tree_are_read() -> None:
    kept = Path(recipe.__file__).parents[1] / "results" / "study_recipe.jsonl"
    lines = recipe.read(kept)
    known = asdict(Recipe())
    assert len(lines) > 100
    assert all(line["recipe"].keys() == known.keys() and 0 < line["last"]["auc"] <= 1 for line in lines)


def test_a_block_is_moved_by_its_own_directions() -> None:
    """A perturbation of one block leaves the others as they are; a step moves all."""
    wanted = replace(small(METHODS["readout, ours, in blocks"]), blocks=2, readout_rows=0)
    data = runs.material("", 0)
    model = setting.wrapped_model(wanted, data, "float32")
    take_step = steps.STEPS["zo"](wanted, model, data)
    layers = list(tuned_layers(model).values())
    shared = adapter_of(model).directions
    with shared.use(torch.arange(8), torch.arange(1.0, 9.0)):
        touched = [layer.directions.coeffs for layer in layers]
    assert touched[0].tolist() == [1, 0, 3, 0, 5, 0, 7, 0]
    assert touched[-1].tolist() == [0, 2, 0, 4, 0, 6, 0, 8]
    assert len({tuple(coeffs.tolist()) for coeffs in touched}) == 2
    take_step(collate(data.train[:4], data.pad), 1.0)
    assert all(layer.lora_b.any() for layer in layers)
