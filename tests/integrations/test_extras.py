"""An integration whose library is not installed names the extra that brings it."""

from __future__ import annotations

import importlib
import sys

import pytest


@pytest.mark.parametrize(("extra", "library"), [("flower", "flwr"), ("ray", "ray"), ("trl", "trl")])
def test_a_library_that_is_not_there(extra: str, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = f"mobizo_kernels.integrations.{extra}"
    monkeypatch.delitem(sys.modules, module, raising=False)
    for name in [name for name in sys.modules if name.startswith(f"{library}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)  # as where it cannot be imported
    with pytest.raises(ImportError, match=rf"{library}.*; pip install 'mobizo-kernels\[{extra}\]' brings"):
        importlib.import_module(module)
