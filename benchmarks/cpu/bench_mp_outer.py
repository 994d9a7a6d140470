"""mp_outer_ against the linear that it follows, the same sums in plain torch, and the memory that it moves.

    python -m benchmarks.cpu.bench_mp_outer [--json FILE] [--threads N] [--quick]

The linears of SmolLM2-135M and G two-sided groups. The peer is what a user would write: with u and v of every
group made beforehand, kept as numbers of the model's dtype, one batched product for x . v and one that is
added in place. A sample goes through 8 layers, each with operands of its own, as in a model. Times are per
layer.

Columns: ms of F.linear alone; how much longer than it F.linear with mp_outer_, and with the peer, take, in %;
the us of mp_outer_ by itself, and GB/s of what it has to move, x once and the output twice. Goal: at most
+10 %.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F

from benchmarks.harness import Report, Variant, dtype_name, parser, time_variants
from mobizo_kernels import ops

LAYERS = 8
EPS = 1e-3
# Rows, in, out, groups: q_proj, k_proj, gate_proj and down_proj, q = 4 and 8 with B = 4 and T = 64.
SHAPES = (
    (2048, 576, 576, 8),
    (2048, 576, 192, 8),
    (2048, 576, 1536, 8),
    (2048, 1536, 576, 8),
    (4096, 576, 1536, 16),
)
QUICK_SHAPES = ((64, 48, 32, 4),)


@dataclass(frozen=True)
class Layer:
    """The operands of one linear."""

    stream: int
    x: torch.Tensor
    weight: torch.Tensor
    base: torch.Tensor
    seeds: torch.Tensor
    coeffs: torch.Tensor
    u: torch.Tensor
    v: torch.Tensor

    def linear(self) -> torch.Tensor:
        return F.linear(self.x, self.weight)

    def moved(self, out: torch.Tensor) -> torch.Tensor:
        ops.mp_outer_(out, self.x, self.seeds, self.coeffs, self.stream)
        return out

    def peer(self, out: torch.Tensor) -> torch.Tensor:
        groups = len(self.seeds)
        slopes = torch.bmm(self.x.unflatten(0, (groups, -1)), self.v)
        out.unflatten(0, (groups, -1)).baddbmm_(slopes, self.u)
        return out


def make_layer(stream: int, shape: tuple[int, int, int, int], dtype: torch.dtype) -> Layer:
    """Random operands; the peer's signs are those of our seeds, its coefficients in u."""
    rows, width, height, groups = shape
    seeds = torch.arange(groups // 2).repeat(2)
    coeffs = torch.tensor([EPS, -EPS]).repeat_interleave(groups // 2)
    signs = torch.stack([ops.noise([height + width], seed, stream, "rademacher") for seed in seeds])
    return Layer(
        stream=stream,
        x=torch.randn(rows, width).to(dtype),
        weight=(torch.randn(height, width) / width**0.5).to(dtype),
        base=torch.zeros(rows, height, dtype=dtype),
        seeds=seeds,
        coeffs=coeffs,
        u=(coeffs[:, None, None] * signs[:, None, :height]).to(dtype),
        v=signs[:, height:, None].to(dtype),
    )


def compare(report: Report, rounds: int, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> None:
    """Add one row."""
    layers = [make_layer(stream, shape, dtype) for stream in range(LAYERS)]
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    for layer in layers:
        got, expected = layer.moved(layer.linear()), layer.peer(layer.linear())
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)

    def through_layers(run: Callable[[Layer], object]) -> Variant:
        def variant() -> None:
            for layer in layers:
                run(layer)

        return variant

    timings = time_variants(
        {
            "F.linear": through_layers(Layer.linear),
            "mp_outer_": through_layers(lambda layer: layer.moved(layer.linear())),
            "plain torch": through_layers(lambda layer: layer.peer(layer.linear())),
            "mp_outer_ alone": through_layers(lambda layer: layer.moved(layer.base)),
        },
        rounds,
    )
    rows, width, height, groups = shape
    limit, alone = timings["F.linear"].p50, timings["mp_outer_ alone"]
    moved_bytes = rows * (width + 2 * height) * dtype.itemsize
    report.add(
        {"dtype": dtype_name(dtype), "rows": rows, "in": width, "out": height, "G": groups},
        timings,
        {
            "F.linear ms": timings["F.linear"].show(1e3 / LAYERS),
            "mp_outer_ %": 100 * (timings["mp_outer_"].p50 / limit - 1),
            "plain torch %": 100 * (timings["plain torch"].p50 / limit - 1),
            "alone us": alone.show(1e6 / LAYERS),
            "GB/s": LAYERS * moved_bytes / alone.p50 / 1e9,
        },
    )


@torch.no_grad()
def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)  # the agreement of the variants is checked: the same way in every run
    report = Report("mp_outer", options)
    shapes, rounds = (QUICK_SHAPES, 3) if options.quick else (SHAPES, 21)
    for dtype, shape in product((torch.float32, torch.bfloat16), shapes):
        compare(report, rounds, dtype, shape)
    report.finish()


if __name__ == "__main__":
    main()
