"""What the GPU kernels compute, in a process of its own, and the package without them.

tests/triton_values runs on the GPU where there is one, else by Triton's interpreter, which has to be chosen
before Triton is imported.
"""

from __future__ import annotations

from own_process import needs_triton, run_python


@needs_triton
def test_values() -> None:
    run_python("-m", "pytest", "-q", "tests/triton_values")


def test_the_package_works_without_triton() -> None:
    run_python(
        "-c",
        "import sys; sys.modules['triton'] = None\n"
        "import torch, mobizo_kernels\n"
        "mobizo_kernels.ops.perturb_(torch.zeros(3), torch.arange(2), torch.ones(2), 1)",
    )
