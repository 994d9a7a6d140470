"""The pages for people: links lead somewhere, code runs, lines fit, pictures are those of the script."""

from __future__ import annotations

import pkgutil
import re
import runpy
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tiny_texts
import torch
import transformers

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    path.relative_to(ROOT)
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / ".github").rglob("*.md"))
)
FOLDERS = ("benchmarks", "csrc", "docs", "examples", "executorch_ops", "mobizo_kernels", "tests")
RUNNABLE = ("README.md", "docs/usage.md", "docs/adapters.md", "docs/objectives.md")
WIDTH = 100
FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)")


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))


def anchors(page: Path) -> Iterator[str]:
    """The names that a code host gives to the headings of a page."""
    for heading in re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE):
        yield re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def wide_lines(page: Path) -> list[str]:
    """Lines of prose and code that do not fit; rows of a table have the width they need."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if len(line) > WIDTH and not line.startswith("|")]


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links(page: Path) -> None:
    for target, anchor in LINK.findall(prose(page)):
        there = (ROOT / page.parent / target).resolve() if target else ROOT / page
        assert there.exists(), f"{page}: no {target}"
        if anchor:
            assert anchor in anchors(there.relative_to(ROOT)), f"{page}: {target} has no heading {anchor}"


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_what_is_named_is_there(page: Path) -> None:
    """Files of the tree and names of the package in `code`, and modules that are run."""
    names = set(re.findall(r"`([^`\s]+)`", prose(page)))
    paths = {name for name in names if re.fullmatch(rf"({'|'.join(FOLDERS)})/[\w./-]+", name)}
    for module in re.findall(r"python -m (benchmarks\.[\w.]+\w)", (ROOT / page).read_text(encoding="utf-8")):
        path = module.replace(".", "/")
        paths.add(f"{path}/__main__.py" if (ROOT / path).is_dir() else f"{path}.py")
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []
    for name in names:
        if re.fullmatch(r"mobizo_kernels(\.\w+)+", name) and (
            find_spec("executorch") or "executorch" not in name
        ):
            pkgutil.resolve_name(name)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_lines_fit(page: Path) -> None:
    assert wide_lines(page) == []


@pytest.fixture
def model_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever transformers is asked for is a tiny model in float32, its tokenizer ready to pad."""
    there = tiny_texts.save_model(tmp_path / "hub")
    for loader, options in (
        (transformers.AutoModelForCausalLM, {}),
        (transformers.AutoTokenizer, {"pad_token": "</s>"}),
    ):
        load: Any = loader.from_pretrained
        monkeypatch.setattr(
            loader, "from_pretrained", lambda name, load=load, also=options, **own: load(there, **also, **own)
        )


@pytest.mark.parametrize("page", RUNNABLE)
def test_python_blocks_run(
    page: str,
    model_on_the_hub: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = tiny_texts.tokenizer()
    tokens = torch.tensor(tokenizer(["This cast is warm. It was great"] * 2)["input_ids"])
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
    names: dict[str, Any] = {"loader": [batch, batch], "batches": [batch, batch], "tokenizer": tokenizer}
    names["reviews"] = tiny_texts.reviews()
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(encoding="utf-8"), re.M | re.S)
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    assert names["zo"].steps > 0 and names["zo"].skipped_steps == 0
    assert (tmp_path / "adapter/adapter_model.safetensors").exists()
    if page == "README.md":
        losses = [float(word) for word in capsys.readouterr().out.split()]
        assert len(losses) == 20 and losses[-1] < losses[0]


def test_pictures_are_those_of_the_script() -> None:
    drawn = runpy.run_path(str(ROOT / "docs/draw.py"))["PICTURES"]
    files = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "docs/pictures").glob("*.svg")}
    assert files == {name: draw().svg() for name, draw in drawn.items()}
