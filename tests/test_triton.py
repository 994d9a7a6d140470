"""The GPU kernels, each check in a process of its own: what they compute, and what they compile to.

tests/triton_values runs on the GPU where there is one, else by Triton's interpreter, which has to be chosen
before Triton is imported. The compile check needs no GPU: it gives Triton a driver that only compiles.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")


def run(*arguments: str) -> str:
    """The output of `python ARGUMENTS`, which must succeed."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode != 0:
        pytest.fail(f"{' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}", pytrace=False)
    return done.stdout


VALUES = sorted(path.name for path in (ROOT / "tests/triton_values").glob("test_*.py"))


@needs_triton
@pytest.mark.parametrize("file", VALUES)
def test_values(file: str) -> None:
    run("-m", "pytest", "-q", f"tests/triton_values/{file}")


@needs_triton
def test_every_target_compiles_without_spills() -> None:
    assert "| sm_80 | sm_90 | gfx942 |" in run("-m", "benchmarks.gpu.static_cost")


def kernel(**options: Any) -> Any:
    from benchmarks.gpu.targets import Kernel

    described: dict[str, Any] = {"name": "some_kernel", "target": "gfx942", "arguments": {"x": "*bf16"}}
    described |= {"constants": {"BLOCK": 8}, "instructions": 1, "registers": 1, "shared": 0, "spills": 0}
    return Kernel(**{**described, **options})


@needs_triton
def test_what_the_compile_check_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT)  # an installed package does not bring its benchmarks
    from benchmarks.gpu.static_cost import faults

    limits = {"sm_80": 163 << 10, "sm_90": 227 << 10, "gfx942": 64 << 10}
    assert not faults([kernel(target=target, shared=limit) for target, limit in limits.items()])
    for target, limit in limits.items():
        (fault,) = faults([kernel(target=target, shared=limit + 1)])
        assert fault.startswith(f"some_kernel(*bf16; BLOCK=8) on {target} needs {limit + 1} bytes")
    assert faults([kernel(spills=2)]) == ["some_kernel(*bf16; BLOCK=8) on gfx942 spills registers (2)"]


def test_the_package_works_without_triton() -> None:
    run(
        "-c",
        "import sys; sys.modules['triton'] = None\n"
        "import torch, mobizo_kernels\n"
        "mobizo_kernels.ops.perturb_(torch.zeros(3), torch.arange(2), torch.ones(2), 1)",
    )
