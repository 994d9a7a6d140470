"""mp_lora_linear in Triton, in two kernels and in one, against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from helpers import DISTRIBUTIONS, DTYPES, covering, gamma, name_of, poisoned, storage_error
from mp_lora_problems import Problem, assert_close, problem

from mobizo_kernels.triton.mp_lora_linear import fused, fuses

# rows, in, out, rank, groups
SIZES = [(2, 3, 5, 1, 2), (30, 65, 33, 5, 3), (64, 129, 95, 16, 8)]
FUSED_SIZES = [
    (2, 8, 5, 1, 2),
    (30, 72, 33, 5, 3),
    (290, 136, 200, 16, 2),  # more rows in a group than a tile has, and two columns of tiles
    (36, 64, 70, 8, 9),  # more tiles of rows than run side by side
    (5, 64, 20, 4, 1),
]


def linear_problem(
    sizes: tuple[int, int, int, int, int],
    device: str,
    mix: tuple[torch.dtype, torch.dtype, torch.dtype],
    with_bias: bool,
    distribution: str = "gaussian",
) -> tuple[Problem, torch.Tensor, torch.Tensor | None]:
    """An adapter problem without its base, a weight and a bias."""
    rng = torch.Generator().manual_seed(1)
    _, in_features, out_features, _, _ = sizes
    weight = torch.randn(out_features, in_features, generator=rng).div(in_features**0.5).to(mix[0])
    bias = torch.randn(out_features, generator=rng).to(mix[0]).to(device) if with_bias else None
    return problem(sizes, device, mix, distribution), weight.to(device), bias


def assert_close_to_linear(
    got: torch.Tensor, p: Problem, weight: torch.Tensor, bias: torch.Tensor | None
) -> None:
    """The linear may be stored in the dtype of x before the adapter is added, or never."""
    x, wide = p.x.double().cpu(), weight.double().cpu()
    shift = torch.zeros(len(weight)) if bias is None else bias.cpu()
    base = x @ wide.T + shift.double()
    magnitude = x.abs() @ wide.abs().T + shift.double().abs()
    error = 2 * gamma(x.shape[1] + 1) * magnitude
    error = error + storage_error(base.abs() + error, p.x.dtype)
    stored = base.to(p.x.dtype)
    error = error + (stored.double() - base).abs()
    assert_close(got, p._replace(base=stored), error)


@pytest.mark.parametrize(("sizes", "dtype", "bias"), covering(SIZES, DTYPES, (True, False)), ids=name_of)
def test_linear(
    sizes: tuple[int, int, int, int, int], dtype: torch.dtype, bias: bool, op: Callable, device: str
) -> None:
    p, weight, offset = linear_problem(sizes, device, (dtype, torch.float32, torch.float32), bias)
    got = op("mp_lora_linear")(p.x, weight, offset, *p[2:])
    assert_close_to_linear(got, p, weight, offset)
    shaped = op("mp_lora_linear")(p.x[None], weight, offset, *p[2:])
    assert torch.equal(shaped, got[None])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float16], ids=name_of)
@pytest.mark.parametrize("sizes", FUSED_SIZES, ids=name_of)
def test_fused(
    sizes: tuple[int, int, int, int, int], storage: torch.dtype, distribution: str, device: str
) -> None:
    mix = (storage, storage, torch.float32)
    p, weight, bias = linear_problem(sizes, device, mix, storage == torch.float16, distribution)
    assert_close_to_linear(fused(p.x, weight, bias, *p[2:]), p, weight, bias)


@pytest.mark.parametrize("b_storage", DTYPES, ids=name_of)
def test_fused_with_a_clean_group_and_strided_rows(b_storage: torch.dtype, device: str) -> None:
    p, weight, bias = linear_problem(
        (24, 64, 67, 12, 3), device, (torch.bfloat16, torch.bfloat16, b_storage), True
    )
    p.coeffs[0] = 0
    expected = fused(p.x, weight, bias, *p[2:])
    assert_close_to_linear(expected, p, weight, bias)
    gap = poisoned(24, 8, dtype=torch.bfloat16).to(device)
    rows = torch.cat([p.x, gap], dim=1)[:, :64].reshape(4, 6, 64)
    assert torch.equal(fused(rows, weight, bias, *p[2:]), expected.reshape(4, 6, 67))


def test_fuses_narrow_outputs_of_many_rows() -> None:
    """The rule is a model, kept here so that a change of it is seen."""
    assert fuses(16384, 8, 2048, 256, 16)
    assert not fuses(2048, 8, 2048, 256, 16)  # leaves most of the GPU idle
    assert not fuses(16384, 8, 4096, 4096, 16)
    assert not fuses(16384, 1024, 2048, 256, 16)  # tiles of 128 rows for groups of 16
    assert not fuses(16384, 8, 2048, 256, 64)
    assert not fuses(0, 8, 2048, 256, 16)


def test_fake(assert_fake_agrees: Callable, device: str) -> None:
    p, weight, bias = linear_problem(
        (12, 9, 7, 2, 4), device, (torch.bfloat16, torch.float32, torch.float32), True
    )
    assert_fake_agrees("mp_lora_linear", p.x.reshape(3, 4, 9), weight, bias, *p[2:])
    assert_fake_agrees("mp_lora_linear", p.x, weight, None, *p[2:])


def test_refuses(op: Callable, device: str) -> None:
    p, weight, bias = linear_problem((12, 3, 5, 2, 4), device, (torch.float32,) * 3, True)
    assert bias is not None
    wrong = {
        "weight": (p.x, weight[:, :2], bias),
        "weight .*float32.*bfloat16": (p.x, weight.bfloat16(), bias),
        "bias": (p.x, weight, bias[:4]),
        "bias .*float32.*float16": (p.x, weight, bias.half()),
        "lora_b": (p.x, weight[:4], bias[:4]),
        r"rows of x \(11\)": (p.x[:11], weight, bias),
    }
    for message, arguments in wrong.items():
        with pytest.raises(RuntimeError, match=f"mobizo::mp_lora_linear: {message}"):
            op("mp_lora_linear")(*arguments, *p[2:])
