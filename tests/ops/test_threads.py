"""One thread against many, to the bit, for every op."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from helpers import DISTRIBUTIONS, DTYPES, assert_same_bits, directions, name_of

from mobizo_kernels import ops

THREADS = (2, 3, 8)


def assert_threads_agree(run: Callable[[], torch.Tensor]) -> None:
    torch.set_num_threads(1)
    expected = run()
    for count in THREADS:
        torch.set_num_threads(count)
        assert_same_bits(run(), expected)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_noise(distribution: str) -> None:
    assert_threads_agree(lambda: ops.noise([300_007], torch.tensor(1), 2, distribution))


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_perturb(dtype: torch.dtype, distribution: str, rng: torch.Generator) -> None:
    param = torch.randn(300_007, generator=rng).to(dtype)
    args = (*directions(3, rng), 2, 0.9, distribution)
    assert_threads_agree(lambda: ops.perturb_(param.clone(), *args))


@pytest.mark.usefixtures("threads")
def test_foreach_perturb(rng: torch.Generator) -> None:
    params = [torch.randn(size, generator=rng) for size in (150_001, 0, 3, 90_000, 2048, 1)]
    seeds, coeffs = directions(3, rng)

    def run() -> torch.Tensor:
        copies = [param.clone() for param in params]
        ops.foreach_perturb_(copies, seeds, coeffs, list(range(6)), 0.9)
        return torch.cat(copies)

    assert_threads_agree(run)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_zo_update(dtype: torch.dtype, rng: torch.Generator) -> None:
    param = torch.randn(300_007, generator=rng).to(dtype)
    args = (*directions(3, rng), 2, 0.9)

    def run() -> torch.Tensor:
        copy = param.clone()
        norm = ops.zo_update(copy, *args)
        return torch.cat([copy.float(), norm])

    assert_threads_agree(run)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
def test_optimizers(dtype: torch.dtype, foreach: bool, rng: torch.Generator) -> None:
    size = 300_007
    start, state = torch.randn(size, generator=rng).to(dtype), torch.rand(size, generator=rng)
    seeds, coeffs = directions(3, rng)
    lr, numbers = torch.tensor([0.01]), (0.9, 0.999, 1e-8)

    def run() -> torch.Tensor:
        param, momentum, exp_avg, exp_avg_sq = start.clone(), state.clone(), state.clone(), state.clone()
        if foreach:
            each = [tensor.split([150_001, 3, 60_003, 90_000]) for tensor in (momentum, exp_avg, exp_avg_sq)]
            params, streams = param.split([150_001, 3, 60_003, 90_000]), [1, 2, 3, 4]
            ops.foreach_zo_momentum_(params, each[0], seeds, coeffs, streams, 0.9, 0.95)
            ops.foreach_zo_adam_(params, *each[1:], seeds, coeffs, lr, streams, *numbers, 0.95)
            ops.foreach_zo_sign_(params, seeds, coeffs, lr, streams, 0.95)
            norms = []
        else:
            norms = [
                ops.zo_momentum(param, momentum, seeds, coeffs, 2, 0.9, 0.95),
                ops.zo_adam(param, exp_avg, exp_avg_sq, seeds, coeffs, lr, 2, *numbers, 0.95),
                ops.zo_sign(param, seeds, coeffs, lr, 2, 0.95),
            ]
        return torch.cat([param.float(), momentum, exp_avg, exp_avg_sq, *norms])

    assert_threads_agree(run)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize(
    "sizes",
    [
        (200, 70, 300, 4, 4),
        (1024, 33, 65, 16, 2),
        (256, 20, 700, 4, 256),
        (18, 20, 700, 8, 6),
        (64, 9, 80, 3, 32),
    ],
    ids=name_of,
)
@pytest.mark.parametrize("paired", [False, True], ids=["alone", "paired"])
def test_mp_lora(
    sizes: tuple[int, int, int, int, int], paired: bool, dtype: torch.dtype, rng: torch.Generator
) -> None:
    rows, in_features, out_features, rank, groups = sizes
    # Small integers: the linear inside mp_lora_linear is then exact in whatever order its library sums.
    x = torch.randint(-2, 3, (rows, in_features), generator=rng).to(dtype)
    weight = torch.randint(-1, 2, (out_features, in_features), generator=rng).to(dtype)
    base = torch.randn(rows, out_features, generator=rng).to(dtype)
    lora_a = torch.randn(rank, in_features, generator=rng)
    lora_b = torch.randn(out_features, rank, generator=rng)
    seeds, coeffs = directions(groups, rng)
    if paired:
        seeds = seeds[: groups // 2].repeat(2)
    args = (lora_a, lora_b, seeds, coeffs, 0.5, 9)
    assert_threads_agree(lambda: ops.mp_lora(base, x, *args))
    assert_threads_agree(lambda: ops.mp_lora_(base.clone(), x, *args))
    assert_threads_agree(lambda: torch.ops.mobizo.mp_lora.out(base, x, *args, out=torch.empty_like(base)))
    assert_threads_agree(lambda: ops.mp_lora_linear(x, weight, None, *args))

    def outer() -> torch.Tensor:
        moved = base.clone()
        ops.mp_outer_(moved, x, seeds, coeffs, 9)
        return moved

    assert_threads_agree(outer)


@pytest.mark.parametrize("size", [5, 300_007], ids=["one task", "many tasks"])
def test_sixteen_threads_at_once(size: int, rng: torch.Generator) -> None:
    """Of one process, with arguments of their own: each has the bits of a call alone."""
    seeds, coeffs = directions(16, rng)
    start, state, lora_b = (torch.randn(size, generator=rng) for _ in range(3))
    x, lora_a = torch.randn(8, 3, generator=rng), torch.randn(1, 3, generator=rng)
    ready = Barrier(16)

    def run(call: int, barrier: Barrier | None = None) -> torch.Tensor:
        if barrier is not None:
            barrier.wait(60)
        direction = seeds[call : call + 1], coeffs[call : call + 1]
        param, momentum = start.clone(), state.clone()
        norm = ops.zo_momentum(param, momentum, *direction, call, 0.9)
        ops.perturb_(param, *direction, -call, 0.5, "rademacher")
        out = ops.mp_lora(x @ x.T @ torch.zeros(8, size), x, lora_a, lora_b[:, None], *direction, 0.5, call)
        return torch.cat([param, momentum, norm, out.flatten(), ops.noise([size], seeds[call], call)])

    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda call: run(call, ready), range(16)))
    for call, got in enumerate(together):
        assert_same_bits(got, run(call))
