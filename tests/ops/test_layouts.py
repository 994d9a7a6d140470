"""Dense inputs with permuted strides, and expanded ones, in every op: opcheck, and values of dense copies.

torch.compile may hand an op any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import assert_same_bits

pytestmark = pytest.mark.compiler

SEEDS, COEFFS, LR = torch.tensor([5, -6, 7]), torch.tensor([0.5, -0.5, 0.25]), torch.tensor([0.1])
Layout = Callable[[torch.Tensor], torch.Tensor]


def permuted(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, the last size being the outermost in memory, as of a convolution's channels."""
    return tensor.movedim(-1, 0).contiguous().movedim(0, -1)


def swapped(tensor: torch.Tensor) -> torch.Tensor:
    """The same values, the first two sizes in the other order in memory."""
    return tensor.transpose(0, 1).contiguous().transpose(0, 1)


def expanded(tensor: torch.Tensor) -> torch.Tensor:
    """The first of each leading size, repeated without being copied."""
    return tensor[:1].expand_as(tensor)


LAYOUTS: dict[str, Layout] = {"permuted": permuted, "swapped": swapped, "expanded": expanded}


def calls(layout: Layout, written: Layout) -> dict[str, tuple[Any, list[Any], dict[str, Any]]]:
    """Every op: the overload, its arguments, and keywords. What an op writes may not be expanded."""
    rng, op = torch.Generator().manual_seed(4), torch.ops.mobizo

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=rng)

    def read(*shape: int) -> torch.Tensor:
        return layout(drawn(*shape))

    def own(*shape: int) -> torch.Tensor:
        return written(drawn(*shape))

    lora = [read(3, 10), read(7, 3), SEEDS, COEFFS, 2.0, 11]
    directions, streams, numbers = [SEEDS, COEFFS], [4, 5], [0.9, 0.99, 1e-8]

    def state() -> torch.Tensor:
        return written(drawn(2, 6, 7).abs())

    return {
        "noise.out": (op.noise.out, [[2, 6, 7], SEEDS[:1], 4], {"out": own(2, 6, 7)}),
        "perturb_": (op.perturb_.default, [own(2, 6, 7), *directions, 4], {}),
        "foreach_perturb_": (
            op.foreach_perturb_.default,
            [[own(2, 6, 7), own(5, 3)], *directions, streams],
            {},
        ),
        "zo_update": (op.zo_update.default, [own(2, 6, 7), *directions, 4], {}),
        "zo_momentum": (op.zo_momentum.default, [own(2, 6, 7), own(2, 6, 7), *directions, 4, 0.9], {}),
        "zo_adam": (
            op.zo_adam.default,
            [own(2, 6, 7), own(2, 6, 7), state(), *directions, LR, 4, *numbers],
            {},
        ),
        "zo_sign": (op.zo_sign.default, [own(2, 6, 7), *directions, LR, 4], {}),
        "foreach_zo_momentum_": (
            op.foreach_zo_momentum_.default,
            [[own(2, 6, 7)], [own(2, 6, 7)], *directions, [4], 0.9],
            {},
        ),
        "foreach_zo_adam_": (
            op.foreach_zo_adam_.default,
            [[own(2, 6, 7)], [own(2, 6, 7)], [state()], *directions, LR, [4], *numbers],
            {},
        ),
        "foreach_zo_sign_": (op.foreach_zo_sign_.default, [[own(2, 6, 7)], *directions, LR, [4]], {}),
        "mp_lora": (op.mp_lora.default, [read(2, 6, 7), read(2, 6, 10), *lora], {}),
        "mp_lora.out": (op.mp_lora.out, [read(2, 6, 7), read(2, 6, 10), *lora], {"out": own(2, 6, 7)}),
        "mp_lora_": (op.mp_lora_.default, [own(2, 6, 7), read(2, 6, 10), *lora], {}),
        "mp_lora_linear": (
            op.mp_lora_linear.default,
            [read(2, 6, 10), read(7, 10), drawn(14)[::2], *lora],
            {},
        ),
        "mp_lora_traced_": (
            op.mp_lora_traced_.default,
            [own(2, 6, 7), read(2, 6, 10), *lora[:-1], torch.tensor([11]), "gaussian"],
            {},
        ),
        "mp_outer_": (op.mp_outer_.default, [own(2, 6, 7), read(2, 6, 10), *directions, 4], {}),
    }


def dense(value: Any) -> Any:
    if isinstance(value, list):
        return [dense(one) for one in value]
    if isinstance(value, dict):
        return {name: dense(one) for name, one in value.items()}
    return value.clone(memory_format=torch.contiguous_format) if isinstance(value, torch.Tensor) else value


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return [
        tensor
        for one in values
        if isinstance(one, (torch.Tensor, list, dict, tuple))
        for tensor in tensors(one)
    ]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", calls(permuted, permuted))
def test_layouts(op: str, layout: str) -> None:
    written = permuted if layout == "expanded" else LAYOUTS[layout]
    overload, args, kwargs = calls(LAYOUTS[layout], written)[op]
    plain_args, plain_kwargs = dense(args), dense(kwargs)
    checks = ["test_schema", "test_faketensor"]
    torch.library.opcheck(overload, args, kwargs, test_utils=checks)
    got, expected = overload(*args, **kwargs), overload(*plain_args, **plain_kwargs)
    for one, other in zip(
        tensors([got, args, kwargs]), tensors([expected, plain_args, plain_kwargs]), strict=True
    ):
        if "linear" in op:  # the library's product depends on how it finds its operands
            torch.testing.assert_close(one, other)
        else:
            assert_same_bits(one.contiguous(), other)
