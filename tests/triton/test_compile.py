"""What the GPU kernels compile to. No GPU is needed: Triton is given a driver that only compiles.

One target here; all of them, and the table of docs/triton.md, by `python -m benchmarks.gpu.static_cost`.
"""

from __future__ import annotations

from typing import Any

import pytest
from own_process import ROOT, needs_triton, run_python


@needs_triton
def test_every_kernel_compiles_without_spills() -> None:
    assert "| sm_90 |" in run_python("-m", "benchmarks.gpu.static_cost", "--targets", "sm_90")


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
