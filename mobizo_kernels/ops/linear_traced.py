"""torch.ops.mobizo.linear_traced: a float32 linear by oneDNN, for compiled layers of this package.

torch has `mkldnn::_linear_pointwise`, which its own compiler takes with frozen weights only.
"""

from __future__ import annotations

import torch

_SCHEMA = "linear_traced(Tensor x, Tensor weight, Tensor? bias) -> Tensor"
_library = torch.library.Library("mobizo", "FRAGMENT")
_library.define(_SCHEMA, tags=[torch.Tag.pt2_compliant_tag])


@torch.library.impl(_library, "linear_traced", "CompositeExplicitAutograd")
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@torch.library.register_fake("mobizo::linear_traced", lib=_library)
def _(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    return x.new_empty(*x.shape[:-1], weight.shape[0])
