"""Who may know whom: imports between the folders of the package point down, never up (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import mobizo_kernels

PACKAGE = Path(mobizo_kernels.__file__).parent

# What each folder may import of the package, beside itself. Modules at the top may be imported by all.
BELOW = {
    "reference": "",
    "ops": "",
    "triton": "ops",
    "optim": "files ops",
    "files": "",
    "models": "",
    "lora": "files ops",
    "parameters": "ops lora",
    "data": "files models",
    "loss": "files lora parameters data",
    "generation": "lora parameters loss",
    "journal": "files ops optim lora parameters",
    "zo": "optim lora parameters loss journal",
    "rounds": "optim journal zo",
    "training": "optim lora loss generation journal data zo",
    "executorch": "files ops optim models lora data loss journal zo training",
    "integrations": "ops optim lora parameters loss journal zo rounds training",
    "cli": "files ops optim models lora data loss generation journal zo training executorch",
}


def imports(file: Path) -> set[str]:
    """The folders of the package that a file imports from, at any time."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    parts = (name.split(".") for name in names)
    return {part[1] for part in parts if part[0] == "mobizo_kernels" and len(part) > 1} & BELOW.keys()


@pytest.mark.parametrize("folder", BELOW)
def test_arrows_point_down(folder: str) -> None:
    allowed = {folder, *BELOW[folder].split()}
    files = sorted((PACKAGE / folder).rglob("*.py"))
    assert files
    upward = {str(file.relative_to(PACKAGE)): found for file in files if (found := imports(file) - allowed)}
    assert upward == {}


def test_modules_at_the_top_know_no_folder() -> None:
    found = {file.stem: imports(file) for file in PACKAGE.glob("*.py") if file.stem != "__init__"}
    assert found and not any(found.values()), found


def test_every_folder_has_its_place() -> None:
    assert {file.parent.name for file in PACKAGE.glob("*/__init__.py")} == BELOW.keys()
