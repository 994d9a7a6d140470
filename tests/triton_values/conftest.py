"""Values of the Triton kernels: through torch.ops on a GPU where there is one, else in the interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

ON_GPU = torch.cuda.is_available()
if not ON_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
    from interpreter import repair

    repair()

from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402
from torch.utils._pytree import tree_map, tree_map_only  # noqa: E402

from mobizo_kernels.ops._cuda import launcher  # noqa: E402

Op = Callable[..., Any]


@pytest.fixture
def device() -> str:
    """Where tensors live: "cuda", or "cpu" under the interpreter."""
    return "cuda" if ON_GPU else "cpu"


@pytest.fixture
def op() -> Callable[[str], Op]:
    """op("noise.out"): the op of torch.ops.mobizo on a GPU, else what it would launch there."""

    def find(name: str) -> Op:
        if not ON_GPU:
            return launcher(name)
        packet, _, overload = name.partition(".")
        return getattr(getattr(torch.ops.mobizo, packet), overload or "default")

    return find


def _described(value: Any) -> Any:
    """What a fake must get right of a result."""
    if not isinstance(value, torch.Tensor):
        return value
    return value.shape, value.stride(), value.dtype


@pytest.fixture
def assert_fake_agrees(op: Callable[[str], Op]) -> Callable[..., None]:
    """assert_fake_agrees("noise", ...): fake CUDA tensors give shapes, strides and dtypes of the kernel."""

    def compare(name: str, *args: Any, **kwargs: Any) -> None:
        packet, _, overload = name.partition(".")
        registered = getattr(getattr(torch.ops.mobizo, packet), overload or "default")
        with FakeTensorMode():
            fake_args, fake_kwargs = tree_map_only(
                torch.Tensor,
                lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device="cuda"),
                (args, kwargs),
            )
            fake = registered(*fake_args, **fake_kwargs)
        actual = op(name)(*args, **kwargs)
        assert tree_map(_described, fake) == tree_map(_described, actual)
        assert fake is None or fake.device.type == "cuda"

    return compare
