"""torch.ops.mobizo.mp_lora_traced_: mp_lora_ as compiled graphs take it, for the layers of this package.

It returns nothing, so nothing is copied. The stream is a tensor, int64 [1] on the CPU: a number would be
baked into the graph, and every adapter of a model would want a graph of its own. All else is as in
:func:`mobizo_kernels.ops.mp_lora_`, but for gradients, of which it has none.
"""

from __future__ import annotations

from typing import Any

import torch

from mobizo_kernels.ops.checks import check, check_device, check_shape
from mobizo_kernels.ops.mp_lora import PerturbedAdapter, check_mp_lora

# No argument has a default: a graph leaves out those that are equal to theirs.
_SCHEMA = (
    "mp_lora_traced_(Tensor(a!) base, Tensor x, Tensor lora_a, Tensor lora_b, Tensor seeds, Tensor coeffs, "
    "float scaling, Tensor stream, str distribution) -> ()"
)
_library = torch.library.Library("mobizo", "FRAGMENT")
_library.define(_SCHEMA, tags=[torch.Tag.pt2_compliant_tag])


@torch.library.impl(_library, "mp_lora_traced_", "CompositeExplicitAutograd")
def _(base: torch.Tensor, x: torch.Tensor, *adapter: Any) -> None:
    *tensors, scaling, stream, distribution = adapter
    torch.ops.mobizo.mp_lora_.default(base, x, *tensors, scaling, int(stream), distribution)


@torch.library.register_fake("mobizo::mp_lora_traced_", lib=_library)
def _(base: torch.Tensor, x: torch.Tensor, *adapter: Any) -> None:
    lora_a, lora_b, seeds, coeffs, scaling, stream, distribution = adapter
    op = "mp_lora_traced_"
    check_device(op, "stream", stream, torch.device("cpu"))
    check_shape(op, "stream", stream, (1,), "shape (1,)")
    check(op, stream.dtype == torch.int64, f"stream must be int64, got {stream.dtype}")
    check_mp_lora(op, base, x, PerturbedAdapter(lora_a, lora_b, seeds, coeffs, scaling, 0, distribution))
