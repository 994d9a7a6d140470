"""What the GPU kernels compute, each file of checks in a process of its own, and the package without them.

tests/triton_values runs on the GPU where there is one, else by Triton's interpreter, which has to be chosen
before Triton is imported.
"""

from __future__ import annotations

import pytest
from own_process import ROOT, needs_triton, run_python

VALUES = sorted(path.name for path in (ROOT / "tests/triton_values").glob("test_*.py"))


@needs_triton
@pytest.mark.parametrize("file", VALUES)
def test_values(file: str) -> None:
    run_python("-m", "pytest", "-q", f"tests/triton_values/{file}")


def test_the_package_works_without_triton() -> None:
    run_python(
        "-c",
        "import sys; sys.modules['triton'] = None\n"
        "import torch, mobizo_kernels\n"
        "mobizo_kernels.ops.perturb_(torch.zeros(3), torch.arange(2), torch.ones(2), 1)",
    )
