"""mp_lora, its in-place, out and linear forms against the float64 reference, within float32 error bounds."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from helpers import (
    DISTRIBUTIONS,
    DTYPES,
    assert_close_to_mp_lora,
    assert_same_bits,
    directions,
    gamma,
    gaps_untouched,
    name_of,
    poisoned,
    storage_error,
    strided,
)
from hypothesis import given
from hypothesis import strategies as st

from mobizo_kernels import ops, reference

# Storage of base and x, of A, of B. Float32 adapters over a bfloat16 base are the usual case.
MIXES = [(base, a, b) for base in DTYPES for a in DTYPES for b in DTYPES]

# rows, in, out, rank, groups
SIZES = [
    (1, 1, 1, 1, 1),
    (2, 3, 5, 1, 2),
    (12, 7, 17, 3, 4),
    (30, 65, 33, 5, 3),
    (34, 40, 63, 31, 2),
    (64, 129, 95, 16, 8),
    (9, 33, 130, 64, 9),
    (200, 96, 193, 8, 2),
    (6, 20, 70, 256, 3),
    (512, 16, 24, 4, 256),
]


class Problem(NamedTuple):
    """Arguments of mp_lora, by name."""

    base: torch.Tensor
    x: torch.Tensor
    lora_a: torch.Tensor
    lora_b: torch.Tensor
    seeds: torch.Tensor
    coeffs: torch.Tensor
    scaling: float
    stream: int
    distribution: str


def problem(
    sizes: tuple[int, int, int, int, int],
    rng: torch.Generator,
    mix: tuple[torch.dtype, torch.dtype, torch.dtype] = (torch.float32,) * 3,
    distribution: str = "gaussian",
) -> Problem:
    rows, in_features, out_features, rank, groups = sizes
    storage, a_storage, b_storage = mix
    return Problem(
        torch.randn(rows, out_features, generator=rng).to(storage),
        torch.randn(rows, in_features, generator=rng).to(storage),
        torch.randn(rank, in_features, generator=rng).div(max(in_features, 1) ** 0.5).to(a_storage),
        torch.randn(out_features, rank, generator=rng).to(b_storage),
        *directions(groups, rng),
        1.75,
        -1234567890123456789,
        distribution,
    )


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("mix", MIXES, ids=name_of)
def test_storage_types(
    mix: tuple[torch.dtype, torch.dtype, torch.dtype], distribution: str, rng: torch.Generator
) -> None:
    p = problem((30, 65, 33, 5, 3), rng, mix, distribution)
    assert_close_to_mp_lora(ops.mp_lora(*p), *p)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("sizes", SIZES, ids=name_of)
def test_sizes(
    sizes: tuple[int, int, int, int, int], distribution: str, dtype: torch.dtype, rng: torch.Generator
) -> None:
    p = problem(sizes, rng, (dtype, torch.float32, torch.float32), distribution)
    assert_close_to_mp_lora(ops.mp_lora(*p), *p)


@given(
    rows=st.integers(0, 40),
    in_features=st.integers(0, 90),
    out_features=st.integers(0, 140),
    rank=st.integers(1, 256),
    groups=st.integers(1, 9),
    mix=st.sampled_from(MIXES),
    distribution=st.sampled_from(DISTRIBUTIONS),
    paired=st.booleans(),
    draw=st.integers(0, 2**32),
)
def test_any_sizes(
    rows: int,
    in_features: int,
    out_features: int,
    rank: int,
    groups: int,
    mix: tuple[torch.dtype, torch.dtype, torch.dtype],
    distribution: str,
    paired: bool,
    draw: int,
) -> None:
    rng = torch.Generator().manual_seed(draw)
    p = problem((rows * groups, in_features, out_features, rank, groups), rng, mix, distribution)
    if paired:
        p = p._replace(seeds=seed_patterns(p.seeds)["paired"])
    assert_close_to_mp_lora(ops.mp_lora(*p), *p)


def seed_patterns(seeds: torch.Tensor) -> dict[str, torch.Tensor]:
    """Which groups share a seed, by name; the seeds of two-sided estimators are paired."""
    groups = len(seeds)
    paired = torch.cat([seeds[: groups // 2].repeat(2), seeds[groups // 2 * 2 :]])
    almost = paired.clone()
    almost[-1] += 1
    return {"paired": paired, "almost": almost, "alone": seeds, "one": seeds[:1].repeat(groups)}


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("pattern", ["paired", "almost", "alone", "one"])
@pytest.mark.parametrize(
    "sizes",
    [
        (16, 65, 193, 8, 16),
        (32, 40, 67, 4, 16),
        (21, 33, 70, 5, 7),
        (24, 20, 50, 1, 6),
        (28, 20, 300, 18, 4),
        (80, 12, 33, 33, 2),
    ],
    ids=name_of,
)
def test_groups_are_as_if_alone(
    sizes: tuple[int, int, int, int, int],
    pattern: str,
    dtype: torch.dtype,
    distribution: str,
    rng: torch.Generator,
) -> None:
    """Whatever groups share a seed or have coefficient 0, each has the bits of a call of its own."""
    p = problem(sizes, rng, (dtype, torch.float32, torch.float32), distribution)
    coeffs = torch.where(torch.rand(sizes[4], generator=rng) < 0.3, 0.0, p.coeffs)
    p = p._replace(seeds=seed_patterns(p.seeds)[pattern], coeffs=coeffs)
    got = ops.mp_lora(*p)
    assert_close_to_mp_lora(got, *p)
    rows = sizes[0] // sizes[4]
    for group in range(sizes[4]):
        part, here = slice(group * rows, (group + 1) * rows), slice(group, group + 1)
        alone = p._replace(base=p.base[part], x=p.x[part], seeds=p.seeds[here], coeffs=p.coeffs[here])
        assert_same_bits(got[part], ops.mp_lora(*alone))


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("rank", [1, 2, 3, 4, 7, 8, 16, 17, 40])
def test_perturbed_b_has_the_bits_of_perturb(rank: int, distribution: str, rng: torch.Generator) -> None:
    """With unit vectors for x and A, the output is B + c z itself, rounded once."""
    p = problem((2 * rank, rank, 77, rank, 2), rng, distribution=distribution)
    p = p._replace(
        base=torch.zeros(2 * rank, 77),
        x=torch.eye(rank).repeat(2, 1),
        lora_a=torch.eye(rank),
        seeds=p.seeds[:1].repeat(2),
        scaling=1.0,
    )
    halves = ops.mp_lora(*p).split(rank)
    for half, seed, coeff in zip(halves, p.seeds, p.coeffs, strict=True):
        expected = reference.perturb(p.lora_b, seed[None], coeff[None], p.stream, 1.0, distribution)
        assert_same_bits(half.T.contiguous(), expected)


@pytest.mark.parametrize("rank", [*range(1, 34), 47, 48, 63, 64, 65, 96, 127, 128, 129, 192, 255, 256])
def test_ranks(rank: int, rng: torch.Generator) -> None:
    p = problem((10, 37, 67, rank, 2), rng)
    assert_close_to_mp_lora(ops.mp_lora(*p), *p)


@pytest.mark.parametrize("leading", [(), (1,), (4, 3), (2, 3, 2)], ids=name_of)
def test_leading_sizes(leading: tuple[int, ...], rng: torch.Generator) -> None:
    rows = torch.Size(leading).numel()
    p = problem((rows, 19, 35, 4, 2 if rows > 1 else 1), rng)
    shaped = p._replace(base=p.base.reshape(*leading, 35), x=p.x.reshape(*leading, 19))
    got = ops.mp_lora(*shaped)
    assert got.shape == (*leading, 35)
    assert_same_bits(got.reshape(p.base.shape), ops.mp_lora(*p))


@pytest.mark.parametrize("mix", [(dtype,) * 3 for dtype in DTYPES], ids=name_of)
def test_forms_agree(mix: tuple[torch.dtype, torch.dtype, torch.dtype], rng: torch.Generator) -> None:
    p = problem((30, 65, 33, 5, 3), rng, mix)
    before = [tensor.clone() for tensor in p[:6]]
    expected = ops.mp_lora(*p)
    out = poisoned(30, 33, dtype=mix[0])
    assert torch.ops.mobizo.mp_lora.out(*p, out=out) is out
    assert_same_bits(out, expected)
    for argument, copy in zip(p[:6], before, strict=True):
        assert_same_bits(argument, copy)
    assert ops.mp_lora_(*p) is p.base
    assert_same_bits(p.base, expected)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("sizes", [(2, 3, 5, 1, 2), (30, 65, 33, 5, 3), (64, 129, 95, 16, 8)], ids=name_of)
def test_linear(
    sizes: tuple[int, int, int, int, int], dtype: torch.dtype, bias: bool, rng: torch.Generator
) -> None:
    p = problem(sizes, rng, (dtype, torch.float32, torch.float32))
    rows, in_features, out_features, _, _ = sizes
    weight = torch.randn(out_features, in_features, generator=rng).div(in_features**0.5).to(dtype)
    offset = torch.randn(out_features, generator=rng).to(dtype) if bias else None
    x = p.x.reshape(1, rows, in_features)
    got = ops.mp_lora_linear(x, weight, offset, *p[2:])
    shift = torch.zeros(out_features) if offset is None else offset
    base = x.double() @ weight.double().T + shift.double()
    magnitude = x.double().abs() @ weight.double().abs().T + shift.double().abs()
    # The linear may be stored in the dtype of x before the adapter is added.
    error = gamma(in_features + 1) * magnitude
    error = error + storage_error(base.abs() + error, dtype)
    stored = base.to(dtype)
    error = error + (stored.double() - base).abs()
    assert_close_to_mp_lora(got, stored, x, *p[2:], base_error=error)


@pytest.mark.parametrize("layout", ["strided", "transposed", "rows", "sequence"])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_non_contiguous_x_and_base(layout: str, dtype: torch.dtype, rng: torch.Generator) -> None:
    p = problem((24, 37, 67, 5, 3), rng, (dtype, torch.float32, torch.float32))
    expected = ops.mp_lora(*p)

    def view(tensor: torch.Tensor) -> torch.Tensor:
        columns = tensor.shape[1]
        if layout == "strided":
            return strided(tensor)
        if layout == "transposed":
            return tensor.t().contiguous().t()
        if layout == "rows":
            return torch.cat([tensor, poisoned(24, 3, dtype=dtype)], dim=1)[:, :columns]
        sequences = tensor.reshape(6, 4, columns)  # [batch, time], stored time first, as recurrent layers do
        return sequences.transpose(0, 1).contiguous().transpose(0, 1)

    p = p._replace(base=view(p.base), x=view(p.x))
    assert not p.x.is_contiguous()
    assert_same_bits(ops.mp_lora(*p).reshape(24, 67), expected)
    assert ops.mp_lora_(*p) is p.base
    assert_same_bits(p.base.reshape(24, 67), expected)
    if layout == "strided":
        assert gaps_untouched(p.base)


def test_non_contiguous_adapter_and_directions(rng: torch.Generator) -> None:
    p = problem((24, 37, 67, 5, 3), rng)
    seeds, coeffs = p.seeds.repeat_interleave(2)[::2], p.coeffs.repeat_interleave(2)[::2]
    assert not seeds.is_contiguous()
    views = p._replace(lora_a=strided(p.lora_a), lora_b=strided(p.lora_b), seeds=seeds, coeffs=coeffs)
    assert_same_bits(ops.mp_lora(*views), ops.mp_lora(*p))


def test_non_contiguous_out(rng: torch.Generator) -> None:
    p = problem((24, 37, 67, 5, 3), rng)
    out = strided(poisoned(24, 67))
    torch.ops.mobizo.mp_lora.out(*p, out=out)
    assert_same_bits(out.contiguous(), ops.mp_lora(*p))
    assert gaps_untouched(out)


def test_base_may_be_x(rng: torch.Generator) -> None:
    p = problem((24, 37, 37, 5, 3), rng)
    expected = ops.mp_lora(*p._replace(base=p.x.clone()))
    assert_same_bits(ops.mp_lora_(*p._replace(base=p.x)), expected)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_groups_of_coefficient_zero_have_no_noise(distribution: str, rng: torch.Generator) -> None:
    p = problem((24, 37, 67, 5, 8), rng, distribution=distribution)
    p.coeffs[[0, 3, 4]] = 0.0
    got, other = ops.mp_lora(*p), ops.mp_lora(*p._replace(seeds=p.seeds + 1))
    clean = (p.coeffs == 0).repeat_interleave(3)
    assert_same_bits(got[clean], other[clean])
    assert bool((got[~clean] != other[~clean]).any(dim=1).all())


def test_one_group_of_coefficient_zero_is_lora(rng: torch.Generator) -> None:
    p = problem((11, 37, 67, 5, 1), rng)._replace(coeffs=torch.zeros(1))
    expected = p.base.double() + 1.75 * p.x.double() @ p.lora_a.double().T @ p.lora_b.double().T
    torch.testing.assert_close(ops.mp_lora(*p).double(), expected, rtol=1e-5, atol=1e-5)
    assert_same_bits(ops.mp_lora(*p._replace(seeds=p.seeds + 1)), ops.mp_lora(*p))


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("rank", [1, 3, 4, 7, 8, 16, 17, 256])
@pytest.mark.parametrize("mix", MIXES, ids=name_of)
def test_few_plain_rows_are_those_of_many(
    mix: tuple[torch.dtype, torch.dtype, torch.dtype], rank: int, rows: int, rng: torch.Generator
) -> None:
    """They have a way of their own, for texts that grow token by token: with the same bits."""
    for out_features in (1, 15, 64, 193):
        p = problem((9, 37, out_features, rank, 1), rng, mix)._replace(coeffs=torch.zeros(1))
        few = p._replace(base=p.base[:rows], x=p.x[:rows])
        expected = ops.mp_lora(*p)[:rows]
        assert_same_bits(ops.mp_lora(*few), expected)
        assert_same_bits(ops.mp_lora(*few._replace(distribution="outer")), expected)
        apart = few._replace(seeds=torch.arange(rows), coeffs=torch.zeros(rows))
        assert_same_bits(ops.mp_lora(*apart), expected)


def test_perturbation_is_not_rounded_into_bfloat16(rng: torch.Generator) -> None:
    """A perturbation far below the spacing of B's storage still moves the output."""
    mix = (torch.float32, torch.float32, torch.bfloat16)
    p = problem((8, 32, 48, 4, 1), rng, mix)._replace(lora_b=torch.ones(48, 4, dtype=torch.bfloat16))
    p = p._replace(coeffs=torch.tensor([1e-4]))
    assert torch.equal(p.lora_b, (p.lora_b.float() + 1e-4).bfloat16())
    assert_close_to_mp_lora(ops.mp_lora(*p), *p)
    still = ops.mp_lora(*p._replace(coeffs=torch.zeros(1)))
    assert bool((ops.mp_lora(*p) != still).any(dim=1).all())


def test_rows_do_not_mix(rng: torch.Generator) -> None:
    p = problem((24, 37, 67, 5, 3), rng)
    clean = ops.mp_lora(*p)
    p.x[13] = torch.nan
    got = ops.mp_lora(*p)
    assert bool(got[13].isnan().all())
    others = torch.arange(24) != 13
    assert_same_bits(got[others], clean[others])


def test_columns_do_not_mix(rng: torch.Generator) -> None:
    p = problem((24, 37, 67, 5, 3), rng)
    clean = ops.mp_lora(*p)
    p.lora_b[66] = torch.nan
    got = ops.mp_lora(*p)
    assert bool(got[:, 66].isnan().all())
    assert_same_bits(got[:, :66], clean[:, :66])


def test_runs_are_equal(rng: torch.Generator) -> None:
    p = problem((200, 96, 193, 8, 2), rng, (torch.bfloat16, torch.float32, torch.float32))
    assert_same_bits(ops.mp_lora(*p), ops.mp_lora(*p))


def test_base_may_overlap_itself_where_it_is_only_read(rng: torch.Generator) -> None:
    p = problem((24, 37, 67, 5, 3), rng)
    expanded = p._replace(base=p.base[:1].expand(24, 67), x=p.x[:1].expand(24, 37))
    dense = p._replace(base=expanded.base.contiguous(), x=expanded.x.contiguous())
    assert_same_bits(ops.mp_lora(*expanded), ops.mp_lora(*dense))
