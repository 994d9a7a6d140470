"""torch.func and forward-mode differentiation, of which the ops know less than of torch.autograd.

torch takes an op that has gradients, and no rule for tangents, for one whose tangents are zero:
`torch.func.jvp` would be wrong without a word. So would `torch.func.grad` of what changes a tensor in place:
the kernel sees the tensor inside, which requires no gradient.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from mobizo_kernels.ops.checks import check

_WAY_OUT = "torch.autograd.grad has gradients, and gradients of gradients"


def check_transforms(op: str, *tensors: torch.Tensor) -> None:
    """Raise RuntimeError inside of a transform of torch.func that differentiates, and where one of the
    tensors carries a tangent. `vmap` and `functionalize` are torch's own affair.
    """
    if torch.compiler.is_compiling():
        return
    functorch = torch._C._functorch
    if functorch.peek_interpreter_stack() is not None:
        for interpreter in functorch.get_interpreter_stack():  # `vmap` may be inside of another
            kind = interpreter.key()
            differentiates = kind in (functorch.TransformType.Grad, functorch.TransformType.Jvp)
            check(op, not differentiates, f"torch.func.{kind.name.lower()} is not supported; {_WAY_OUT}")
    if forward_ad._current_level >= 0:
        tangents = [forward_ad.unpack_dual(tensor).tangent for tensor in tensors]
        none = all(tangent is None for tangent in tangents)
        check(op, none, f"forward-mode differentiation is not supported; {_WAY_OUT}")
