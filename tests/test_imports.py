"""`import mobizo_kernels` imports no torch and gives the ops all the same; nor do help and bad options."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest
import torch

import mobizo_kernels
from mobizo_kernels import _registration

_QUICK = """
import importlib.util, sys
from mobizo_kernels.cli.main import run

for arguments in (
    ["--help"], ["train", "--help"], ["--version"], ["completion", "zsh"], ["train", "--stps=3"],
    ["train", "--out=x", "--resume"], ["train", "--out=x", "--lr=inf"],
):
    try:
        run(arguments)
    except SystemExit:
        pass
slow = {"torch", "transformers", "peft", "numpy", "sklearn", "matplotlib"}
assert not (found := slow & sys.modules.keys()), found

import mobizo_kernels
assert importlib.util.find_spec("torch")  # as libraries look whether it is there: that is no import
assert "torch" not in sys.modules
import torch
assert torch.ops.mobizo.noise([3], torch.tensor(0), 0).shape == (3,)
assert type(torch.__loader__).__name__ == type(torch.__spec__.loader).__name__ == "SourceFileLoader"
assert mobizo_kernels.ops.noise([3], torch.tensor(0), 0).shape == (3,)
assert "transformers" not in sys.modules
"""


def test_options_and_the_package_import_no_torch_and_the_ops_come_with_it() -> None:
    subprocess.run([sys.executable, "-c", _QUICK], check=True, capture_output=True)


def test_every_name_is_there() -> None:
    assert set(mobizo_kernels.__all__) <= set(dir(mobizo_kernels))
    for name in mobizo_kernels.__all__:
        getattr(mobizo_kernels, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = mobizo_kernels.nothing


def test_an_extension_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind torch the import of the package fails; before it that of torch does not: it warns."""

    def fails(name: str) -> ModuleType:
        raise ImportError("the compiled extension is missing")

    monkeypatch.setattr(_registration, "import_module", fails)
    with pytest.raises(ImportError, match="extension is missing"):
        _registration.with_torch()
    with pytest.warns(
        RuntimeWarning, match="torch.ops.mobizo is not there: the compiled extension is missing"
    ):
        _registration._register(torch)
