"""Linears in float32 by oneDNN on CPUs for which torch's BLAS has no fast products.

torch gives float32 products to MKL, which on AVX-512 cores of AMD takes twice the time of oneDNN. torch has
that as well, for products of 16 bits (`python -m benchmarks.cpu.bench_products`).
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MethodType

import torch
import torch.nn.functional as F
from torch import nn

_NOT_OF_INTEL = ("AuthenticAMD", "HygonGenuine")


@cache
def mkl_is_slow() -> bool:
    """Whether float32 products of this torch on this CPU go to MKL, and oneDNN has faster ones."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False
    try:
        described = Path("/proc/cpuinfo").read_text()
    except OSError:
        described = platform.processor()
    return any(vendor in described for vendor in _NOT_OF_INTEL)


@contextmanager
def fast_float32_products(model: nn.Module) -> Iterator[None]:
    """Let the float32 linears of a model run by oneDNN in the block, where that is faster.

    A linear whose `forward` somebody replaced is left alone, and so are all under autocast, where
    `torch.backends.mkldnn.enabled` is off, and while gradients are recorded.
    """
    if (
        not mkl_is_slow()
        or not torch.backends.mkldnn.enabled
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cpu")
    ):
        yield
        return
    linears = [
        module
        for module in model.modules()
        if type(module) is nn.Linear and "forward" not in vars(module) and _is_plain(module.weight)
    ]
    for linear in linears:  # one function for all: a compiled layer serves the others that have the same
        linear.forward = MethodType(_product, linear)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for linear in linears:
            vars(linear).pop("forward", None)  # another thread in such a block may have been here


def _is_plain(weight: torch.Tensor) -> bool:
    """Whether oneDNN takes the weight as it is; torchao's are subclasses."""
    usual = type(weight) in (torch.Tensor, nn.Parameter)
    return usual and weight.dtype == torch.float32 and weight.device.type == "cpu" and weight.is_contiguous()


def _product(linear: nn.Linear, x: torch.Tensor) -> torch.Tensor:
    if x.dtype != torch.float32 or x.numel() == 0:
        return F.linear(x, linear.weight, linear.bias)
    if torch.compiler.is_compiling():
        return torch.ops.mobizo.linear_traced(x, linear.weight, linear.bias)
    return torch.ops.mkldnn._linear_pointwise(x, linear.weight, linear.bias, "none", [], "")
