"""mp_lora, in place and into out too, in Triton against the float64 reference, within float32 bounds."""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

import pytest
import torch
from helpers import (
    DISTRIBUTIONS,
    DTYPES,
    assert_same_bits,
    gaps_untouched,
    name_of,
    poisoned,
    strided,
)
from mp_lora_problems import assert_close, problem

# Storage of base and x, of A, of B.
MIXES = [(base, a, b) for base in DTYPES for a in DTYPES for b in DTYPES]

# rows, in, out, rank, groups
SIZES = [
    (1, 1, 1, 1, 1),
    (2, 3, 5, 1, 2),
    (30, 65, 33, 5, 3),
    (34, 40, 63, 31, 2),
    (9, 33, 130, 64, 9),
    (6, 0, 20, 4, 3),
    (148, 96, 193, 8, 2),  # more rows in a group than a tile has, no multiple of it
    (96, 1100, 70, 16, 8),  # few rows, long ones: the columns of x are split
    (6, 20, 70, 256, 3),
    (268, 300, 35, 130, 2),  # ranks in chunks
]


def spaced(tensor: torch.Tensor) -> torch.Tensor:
    """:func:`strided` on the device of the tensor."""
    holder = strided(tensor.cpu())._base
    assert holder is not None
    return holder.to(tensor.device)[tuple(slice(1, None, 2) for _ in tensor.shape)]


@pytest.mark.parametrize("mix", MIXES, ids=name_of)
def test_storage_types(mix: tuple[torch.dtype, torch.dtype, torch.dtype], op: Callable, device: str) -> None:
    p = problem((30, 65, 33, 5, 3), device, mix)
    assert_close(op("mp_lora")(*p), p)


@pytest.mark.parametrize(
    ("storage", "distribution"), [(torch.float32, "rademacher"), (torch.bfloat16, "gaussian")], ids=name_of
)
@pytest.mark.parametrize("sizes", SIZES, ids=name_of)
def test_sizes(
    sizes: tuple[int, int, int, int, int], storage: torch.dtype, distribution: str, op: Callable, device: str
) -> None:
    p = problem(sizes, device, (storage, torch.float32, torch.float32), distribution)
    assert_close(op("mp_lora")(*p), p)


@pytest.mark.parametrize(
    ("rank", "distribution"),
    zip((1, 2, 3, 4, 6, 7, 8, 12, 16, 20, 32, 33, 63, 64, 65, 128, 255, 256), cycle(DISTRIBUTIONS)),
)
def test_ranks(rank: int, distribution: str, op: Callable, device: str) -> None:
    p = problem((10, 37, 67, rank, 2), device, distribution=distribution)
    assert_close(op("mp_lora")(*p), p)


@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_forms_agree(dtype: torch.dtype, op: Callable, device: str) -> None:
    p = problem((30, 65, 33, 5, 3), device, (dtype,) * 3)
    before = [tensor.clone() for tensor in p[:6]]
    expected = op("mp_lora")(*p)
    out = poisoned(30, 33, dtype=dtype).to(device)
    assert op("mp_lora.out")(*p, out=out) is out
    assert_same_bits(out, expected)
    for argument, copy in zip(p[:6], before, strict=True):
        assert_same_bits(argument, copy)
    assert op("mp_lora_")(*p) is p.base
    assert_same_bits(p.base, expected)


@pytest.mark.parametrize("leading", [(), (1,), (4, 3), (2, 3, 2)], ids=name_of)
def test_leading_sizes(leading: tuple[int, ...], op: Callable, device: str) -> None:
    rows = torch.Size(leading).numel()
    p = problem((rows, 19, 35, 4, 2 if rows > 1 else 1), device)
    shaped = p._replace(base=p.base.reshape(*leading, 35), x=p.x.reshape(*leading, 19))
    got = op("mp_lora")(*shaped)
    assert got.shape == (*leading, 35)
    assert_same_bits(got.reshape(p.base.shape), op("mp_lora")(*p))


@pytest.mark.parametrize("layout", ["strided", "transposed", "rows", "sequence"])
def test_non_contiguous_x_and_base(layout: str, op: Callable, device: str) -> None:
    p = problem((24, 37, 67, 5, 3), device, (torch.bfloat16, torch.float32, torch.float32))
    expected = op("mp_lora")(*p)

    def view(tensor: torch.Tensor) -> torch.Tensor:
        columns = tensor.shape[1]
        if layout == "strided":
            return spaced(tensor)
        if layout == "transposed":
            return tensor.t().contiguous().t()
        if layout == "rows":
            gap = poisoned(24, 3, dtype=tensor.dtype).to(device)
            return torch.cat([tensor, gap], dim=1)[:, :columns]
        sequences = tensor.reshape(6, 4, columns)  # [batch, time], stored time first, as recurrent layers do
        return sequences.transpose(0, 1).contiguous().transpose(0, 1)

    p = p._replace(base=view(p.base), x=view(p.x))
    assert not p.x.is_contiguous()
    assert_same_bits(op("mp_lora")(*p).reshape(24, 67), expected)
    assert op("mp_lora_")(*p) is p.base
    assert_same_bits(p.base.reshape(24, 67), expected)
    if layout in ("strided", "rows"):  # nothing between the rows is written
        holder = p.base._base
        assert holder is not None
        assert int(holder.isnan().sum()) == holder.numel() - p.base.numel()


def test_non_contiguous_adapter_and_directions(op: Callable, device: str) -> None:
    p = problem((24, 37, 67, 5, 3), device)
    seeds, coeffs = p.seeds.repeat_interleave(2)[::2], p.coeffs.repeat_interleave(2)[::2]
    views = p._replace(lora_a=spaced(p.lora_a), lora_b=spaced(p.lora_b), seeds=seeds, coeffs=coeffs)
    assert not views.seeds.is_contiguous()
    assert_same_bits(op("mp_lora")(*views), op("mp_lora")(*p))


def test_non_contiguous_out(op: Callable, device: str) -> None:
    p = problem((24, 37, 67, 5, 3), device)
    out = spaced(poisoned(24, 67).to(device))
    op("mp_lora.out")(*p, out=out)
    assert_same_bits(out.contiguous(), op("mp_lora")(*p))
    assert gaps_untouched(out)


def test_base_may_be_x(op: Callable, device: str) -> None:
    p = problem((24, 37, 37, 5, 3), device)
    expected = op("mp_lora")(*p._replace(base=p.x.clone()))
    assert_same_bits(op("mp_lora_")(*p._replace(base=p.x)), expected)


def test_base_may_overlap_itself_where_it_is_only_read(op: Callable, device: str) -> None:
    p = problem((24, 37, 67, 5, 3), device)
    expanded = p._replace(base=p.base[:1].expand(24, 67), x=p.x[:1].expand(24, 37))
    dense = p._replace(base=expanded.base.contiguous(), x=expanded.x.contiguous())
    assert_same_bits(op("mp_lora")(*expanded), op("mp_lora")(*dense))


@pytest.mark.parametrize(("rank", "groups"), [(8, 2), (8, 7), (80, 3)])
def test_shared_directions(rank: int, groups: int, op: Callable, device: str) -> None:
    """Two-sided pairs, a clean group, one direction for all: noise drawn once or never is still right."""
    p = problem((5 * groups, 21, 35, rank, groups), device)
    half = -(-groups // 2)
    two_sided = p._replace(seeds=torch.cat([p.seeds[:half]] * 2)[:groups])
    one_sided = p._replace(coeffs=torch.cat([p.coeffs[:1] * 0, p.coeffs[1:]]))
    last_clean = two_sided._replace(coeffs=torch.cat([p.coeffs[:-1], p.coeffs[:1] * 0]))
    same_seed = one_sided._replace(seeds=torch.zeros_like(p.seeds))
    for case in (two_sided, one_sided, last_clean, same_seed):
        assert_close(op("mp_lora")(*case), case)


def test_one_group_of_coefficient_zero_is_lora(op: Callable, device: str) -> None:
    p = problem((11, 37, 67, 5, 1), device)
    p = p._replace(coeffs=torch.zeros_like(p.coeffs))
    expected = p.base.double() + 1.75 * p.x.double() @ p.lora_a.double().T @ p.lora_b.double().T
    torch.testing.assert_close(op("mp_lora")(*p).double(), expected, rtol=1e-5, atol=1e-5)
    assert_same_bits(op("mp_lora")(*p._replace(seeds=p.seeds + 1)), op("mp_lora")(*p))


@pytest.mark.parametrize("stream", [0, 1, -1, 2**33 + 5, -(2**63), 2**63 - 1])
def test_streams(stream: int, op: Callable, device: str) -> None:
    p = problem((4, 9, 20, 4, 2), device)._replace(stream=stream)
    assert_close(op("mp_lora")(*p), p)


def test_perturbation_is_not_rounded_into_bfloat16(op: Callable, device: str) -> None:
    """A perturbation far below the spacing of B's storage still moves the output."""
    p = problem((8, 32, 48, 4, 1), device, (torch.float32, torch.float32, torch.bfloat16))
    p = p._replace(lora_b=torch.ones_like(p.lora_b), coeffs=torch.full_like(p.coeffs, 1e-4))
    assert_close(op("mp_lora")(*p), p)
    still = op("mp_lora")(*p._replace(coeffs=torch.zeros_like(p.coeffs)))
    assert bool((op("mp_lora")(*p) != still).any(dim=1).all())


def test_rows_do_not_mix(op: Callable, device: str) -> None:
    p = problem((24, 37, 67, 5, 3), device)
    clean = op("mp_lora")(*p)
    p.x[13] = torch.nan
    got = op("mp_lora")(*p)
    assert bool(got[13].isnan().all())
    others = torch.arange(24) != 13
    assert_same_bits(got.cpu()[others], clean.cpu()[others])


def test_columns_do_not_mix(op: Callable, device: str) -> None:
    p = problem((24, 37, 67, 5, 3), device)
    clean = op("mp_lora")(*p)
    p.lora_b[66] = torch.nan
    got = op("mp_lora")(*p)
    assert bool(got[:, 66].isnan().all())
    assert_same_bits(got[:, :66], clean[:, :66])


def test_runs_are_equal(op: Callable, device: str) -> None:
    p = problem((200, 96, 193, 8, 2), device, (torch.bfloat16, torch.float32, torch.float32))
    assert_same_bits(op("mp_lora")(*p), op("mp_lora")(*p))


@pytest.mark.parametrize("rows", [0, 6])
@pytest.mark.parametrize("out_features", [0, 5])
def test_nothing_to_do(rows: int, out_features: int, op: Callable, device: str) -> None:
    p = problem((rows, 4, out_features, 3, 2), device)
    assert op("mp_lora")(*p).shape == (rows, out_features)


def test_fake(assert_fake_agrees: Callable, device: str) -> None:
    p = problem((24, 37, 67, 5, 3), device, (torch.bfloat16, torch.float32, torch.float32))
    assert_fake_agrees("mp_lora", *p)
    assert_fake_agrees("mp_lora.out", *p, out=torch.empty_like(p.base))
    assert_fake_agrees("mp_lora_", *p)


def test_refuses_before_writing(op: Callable, device: str) -> None:
    """The checks are those of the fakes, which have tests of their own; here, that they come first."""
    p = problem((12, 3, 5, 2, 4), device)
    before, out = p.base.clone(), poisoned(12, 5).to(device)
    wrong = {
        "x": p.x.double(),
        "lora_a": p.lora_a[:, :2],
        "lora_b": p.lora_b[:4],
        "seeds": p.seeds.float(),
        "coeffs": p.coeffs[:3],
        "distribution": "gausian",
    }
    for name, value in wrong.items():
        call = p._replace(**{name: value})
        with pytest.raises(RuntimeError, match=f"mobizo::mp_lora_: {name} "):
            op("mp_lora_")(*call)
        with pytest.raises(RuntimeError, match=f"mobizo::mp_lora: {name} "):
            op("mp_lora.out")(*call, out=out)
    five = p._replace(
        seeds=torch.zeros(5, dtype=torch.int64, device=device), coeffs=torch.ones(5, device=device)
    )
    with pytest.raises(
        RuntimeError, match=r"rows of x \(12\) must be divisible by the number of groups \(5\)"
    ):
        op("mp_lora_")(*five)
    with pytest.raises(RuntimeError, match="mobizo::mp_lora_: base must not overlap"):
        op("mp_lora_")(*p._replace(base=p.base[:1].expand(12, 5)))
    with pytest.raises(RuntimeError, match="mobizo::mp_lora: out must not overlap"):
        op("mp_lora.out")(*p, out=out[:1].expand(12, 5))
    assert_same_bits(p.base, before)
    assert bool(out.isnan().all())
