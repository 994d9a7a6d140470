"""What is registered for GPUs: every op, without importing Triton before it is needed."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest
import torch

from mobizo_kernels.ops._cuda import LAUNCHES, launcher


def test_every_op_has_a_launch() -> None:
    """What has a CPU kernel has one for GPUs, and a launch names nothing that does not exist."""
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("mobizo::")]
    on = {
        key: {name for name in names if torch._C._dispatch_has_kernel_for_dispatch_key(name, key)}
        for key in ("CPU", "CUDA")
    }
    assert on["CUDA"] == on["CPU"] == {f"mobizo::{op}" for op in LAUNCHES}
    for module, function in LAUNCHES.values():
        assert callable(getattr(import_module(f"mobizo_kernels.triton.{module}"), function))


def test_missing_triton_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("mobizo_kernels.triton")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    with pytest.raises(RuntimeError, match=r"mobizo::noise: .*need Triton.*mobizo-kernels\[gpu\]"):
        launcher("noise")([3], torch.tensor(1), 2)


def test_importing_the_package_leaves_triton_alone() -> None:
    program = "import sys, mobizo_kernels; sys.exit(any(m.split('.')[0] == 'triton' for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
