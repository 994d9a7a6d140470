"""Every launch of the Triton kernels that matters, for the driver of benchmarks/gpu/targets.py to compile."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from triton.language.target_info import cuda_capability_geq

from mobizo_kernels.ops.checks import DISTRIBUTIONS, STORAGE_DTYPES

STREAM = -5
# With directions "outer" 4 or 8 neighbours share a word of signs where that divides rows and columns.
VALUES, RUNS, NO_RUNS = 5120, (40, 128), (5, 1024)


def launch_all() -> None:
    """Call the wrappers of all ops on tensors of the CPU, whose values stay as they are."""
    for launches in (noise_and_updates, optimizers, adapters, outer_linears):
        launches()


def noise_and_updates() -> None:
    """noise, perturb_, foreach_perturb_ and zo_update, on aligned and other addresses."""
    from mobizo_kernels.triton import launch, noise, perturb, zo_update

    for blocks in (5, 5000):
        launch.store_norm(torch.zeros(blocks, dtype=torch.float64), torch.zeros(1))
    seeds, coeffs = torch.arange(3), torch.ones(3)
    for dtype, distribution in product(STORAGE_DTYPES, DISTRIBUTIONS):
        room = torch.zeros(VALUES + 1, dtype=dtype)
        some = (seeds, coeffs, STREAM, 0.5, distribution)
        noise.noise(RUNS, seeds[0], STREAM, distribution, dtype=dtype)
        noise.noise_out(NO_RUNS, seeds[0], STREAM, distribution, dtype=dtype, out=room[1:].view(NO_RUNS))
        for param in (room[:VALUES].view(RUNS), room[1:].view(NO_RUNS)):
            perturb.perturb_(param, *some)
            perturb.foreach_perturb_([param], seeds, coeffs, [STREAM], 0.5, distribution)
            zo_update.zo_update(param, *some)


def optimizers() -> None:
    """zo_momentum, zo_adam, zo_sign and their foreach forms, on aligned and other addresses, or on copies."""
    from mobizo_kernels.triton import zo_adam, zo_momentum, zo_sign

    directions, lr, numbers = (torch.arange(3), torch.ones(3)), torch.ones(1), (0.9, 0.999, 1e-8)
    for dtype, distribution in product(STORAGE_DTYPES, DISTRIBUTIONS):
        rooms = [torch.zeros(2 * VALUES, dtype=dtype), torch.zeros(2 * VALUES), torch.zeros(2 * VALUES)]
        rest = (0.5, distribution)
        places = ((slice(VALUES), RUNS), (slice(1, VALUES + 1), NO_RUNS), (slice(None, None, 2), RUNS))
        for place, shape in places:
            p, m, v = (room[place].view(shape) for room in rooms)
            zo_momentum.zo_momentum(p, m, *directions, STREAM, 0.9, *rest)
            zo_momentum.foreach_zo_momentum_([p], [m], *directions, [STREAM], 0.9, *rest)
            zo_adam.zo_adam(p, m, v, *directions, lr, STREAM, *numbers, *rest)
            zo_adam.foreach_zo_adam_([p], [m], [v], *directions, lr, [STREAM], *numbers, *rest)
            zo_sign.zo_sign(p, *directions, lr, STREAM, *rest)
            zo_sign.foreach_zo_sign_([p], *directions, lr, [STREAM], *rest)


def outer_linears() -> None:
    """mp_outer_ on sizes that fit its blocks, and on others."""
    from mobizo_kernels.triton import mp_outer

    directions = torch.arange(4), torch.ones(4)
    for dtype, (width, height) in product(STORAGE_DTYPES, ((256, 384), (65, 33))):
        base, x = torch.zeros(128, height, dtype=dtype), torch.zeros(128, width, dtype=dtype)
        for transposed in (False, True):
            mp_outer.mp_outer_(base, x, *directions, STREAM, transposed)


@dataclass(frozen=True)
class Adapter:
    """Sizes of an adapted linear: G groups of `rows` rows each."""

    x: torch.dtype
    rank: int
    distribution: str = "gaussian"
    lora_a: torch.dtype = torch.float32
    lora_b: torch.dtype = torch.float32
    groups: int = 4
    rows: int = 64
    in_features: int = 128
    out_features: int = 96
    device: str = "cpu"

    def operands(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, tuple[Any, ...]]:
        """base, x, weight, and what follows them in the arguments of every op."""
        with torch.device(self.device):
            rows = self.groups * self.rows
            base = torch.empty(rows, self.out_features, dtype=self.x)
            x = torch.empty(rows, self.in_features, dtype=self.x)
            weight = torch.empty(self.out_features, self.in_features, dtype=self.x)
            lora_a = torch.empty(self.rank, self.in_features, dtype=self.lora_a)
            lora_b = torch.empty(self.out_features, self.rank, dtype=self.lora_b)
            directions = torch.zeros(self.groups, dtype=torch.int64), torch.zeros(self.groups)
        return base, x, weight, (lora_a, lora_b, *directions, 0.5, STREAM, self.distribution)


def adapter_cases() -> list[Adapter]:
    """Every kind of rank, mixes of dtypes, and both ends of the shapes."""
    f32, bf16, f16 = STORAGE_DTYPES
    return [
        *(Adapter(bf16, rank) for rank in (1, 5, 8, 16, 64, 96, 256)),
        *(Adapter(x, rank) for x, rank in product((f32, f16), (5, 16, 256))),
        *(Adapter(bf16, rank, name) for rank, name in product((5, 16, 256), ("rademacher", "outer"))),
        *(Adapter(x, 16, name) for x, name in product((f32, f16), ("rademacher", "outer"))),
        *(Adapter(bf16, rank, "outer") for rank in (1, 8, 64, 96)),
        Adapter(bf16, 16, "outer", rows=3, in_features=4096),
        Adapter(bf16, 16, "outer", out_features=1 << 27, device="meta"),
        *(Adapter(x, 16, lora_a=a, lora_b=b) for x, a, b in ((bf16, bf16, bf16), (f16, f16, f16))),
        *(Adapter(x, 16, lora_a=a, lora_b=b) for x, a, b in ((bf16, f16, bf16), (f32, bf16, f16))),
        *(Adapter(x, 16, rows=3, in_features=4096) for x in STORAGE_DTYPES),
        Adapter(bf16, 256, rows=3, in_features=4096),
        Adapter(bf16, 16, groups=3, rows=7, in_features=65, out_features=33),
        Adapter(bf16, 16, out_features=1 << 27, device="meta"),  # elements of B are numbered in 64 bits
    ]


def measured_cases() -> list[Adapter]:
    """The linears of both stages of bench.py: layers alone, and steps over all tokens or the last two."""
    from benchmarks.gpu.models import SIZES
    from benchmarks.gpu.ops import FULL, RANK, SEQUENCES, linear_shapes
    from benchmarks.gpu.steps import LARGE_MODEL, OTHER_SETTINGS, SMALL_MODEL

    shapes = {(SEQUENCES * length, 2 * q, *shape) for _, shape, length, q in linear_shapes(FULL)}
    for case in (SMALL_MODEL, LARGE_MODEL, *OTHER_SETTINGS):
        sizes = SIZES[case.model]
        hidden = sizes["hidden_size"]
        keys = hidden * sizes["num_key_value_heads"] // sizes["num_attention_heads"]
        for tokens, width in product((case.length, 2), (hidden, keys)):
            shapes.add((SEQUENCES * tokens, 2 * case.queries, hidden, width))
    return [
        Adapter(
            torch.bfloat16, RANK, groups=groups, rows=rows // groups, in_features=features,
            out_features=width, device="meta",
        )
        for rows, groups, features, width in sorted(shapes)
    ]  # fmt: skip


def fused_cases() -> list[Adapter]:
    """For the kernel that makes the whole adapted linear: narrow and wide outputs. Only Hopper and later take
    it, whose hardware copies the tiles.
    """
    if not cuda_capability_geq(9):
        return []
    sizes: dict[str, Any] = {"rows": 1024, "in_features": 2048, "device": "meta"}
    measured = [replace(case, lora_a=case.x) for case in measured_cases() if case.rows > 1]
    return measured + [
        Adapter(dtype, rank, distribution, lora_a=dtype, lora_b=lora_b, out_features=width, **sizes)
        for dtype, (rank, distribution, lora_b), width in product(
            (torch.bfloat16, torch.float16),
            (
                (16, "gaussian", torch.float32),
                (16, "gaussian", torch.bfloat16),
                (16, "rademacher", torch.float32),
                (16, "outer", torch.float32),
                (5, "gaussian", torch.float32),
            ),
            (256, 1024),
        )
    ]


def adapters() -> None:
    """mp_lora_, which mp_lora shares its launches with, and both forms of mp_lora_linear."""
    from mobizo_kernels.triton import mp_lora, mp_lora_linear

    for case in (*adapter_cases(), *measured_cases()):
        base, x, _, tail = case.operands()
        mp_lora.mp_lora_(base, x, *tail)
    for dtype in STORAGE_DTYPES:
        base, x, weight, tail = Adapter(dtype, 8).operands()
        mp_lora_linear.mp_lora_linear(x, weight, None, *tail)
    for case in fused_cases():
        base, x, weight, tail = case.operands()
        for bias in (None, base[0]):
            mp_lora_linear.fused(x, weight, bias, *tail)
