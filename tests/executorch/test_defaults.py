"""What a run does unless it is told otherwise: the same in Python, in the native trainer, and on the page."""

from __future__ import annotations

import inspect
import re
from dataclasses import asdict, fields
from pathlib import Path

from crash import start_runner

from mobizo_kernels.cli.settings import TokenizeSettings, TrainSettings
from mobizo_kernels.executorch import Trainer
from mobizo_kernels.run_defaults import RUN

RECIPE = Path(__file__).resolve().parents[2] / "docs" / "recipe.md"


def native_defaults() -> dict[str, str]:
    """By option: what the help of the runner ends with in brackets."""
    process = start_runner(["train", "--help"])
    text, _ = process.communicate()
    assert process.returncode == 0
    return dict(re.findall(r"^  --(\S+).*?\[([^\[\]]*)\]$", text, re.MULTILINE))


def test_the_native_trainer_has_them() -> None:
    native = native_defaults()
    expected = {}
    for name, value in asdict(RUN).items():
        option = name.replace("_", "-")
        if not isinstance(value, bool):
            expected[option] = str(value)
        elif value:  # the other of a pair, or a flag that is not given, has no brackets
            expected[option] = "the default"
    assert {option: native.get(option) for option in expected} == expected
    assert {option for option, value in native.items() if value == "the default"} <= expected.keys()
    assert native["start"] == TrainSettings.start


def test_python_has_them() -> None:
    of_readout = inspect.signature(Trainer.read_out).parameters
    assert of_readout["validation_rows"].default == RUN.validation_rows
    parameters = {**inspect.signature(Trainer.train).parameters, "readout_rows": of_readout["rows"]}
    assert {name: parameters[name].default for name in asdict(RUN)} == asdict(RUN)
    for settings in (TrainSettings, TokenizeSettings):
        defaults = {field.name: field.default for field in fields(settings)}
        defaults["run_seed"] = defaults["seed"]
        for name, value in asdict(RUN).items():
            assert defaults.get(name, value) == value, (settings, name)
    assert TokenizeSettings.batch_size == TrainSettings.batch_size


def test_the_page_of_the_recipe_has_them() -> None:
    page = RECIPE.read_text(encoding="utf-8")
    for words in (
        f"| `--targets {TrainSettings.targets} --layers {TrainSettings.layers}` |",
        f"rank {TrainSettings.rank} |",
        f"| `--tail {TrainSettings.tail}` |",
        f"| q = {TrainSettings.queries}, two-sided, {TrainSettings.distribution.title()}, eps {RUN.eps} |",
        f"| B = {TrainSettings.batch_size}, {RUN.steps} steps |",
        f"| {RUN.lr}, falling {RUN.lr_schedule}ly to 0, with FZOO's normalisation |",
    ):
        assert words in page, words
    assert (TrainSettings.estimator, RUN.normalize, RUN.keep) == ("two_sided", True, "best")
