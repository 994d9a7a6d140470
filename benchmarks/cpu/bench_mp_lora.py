"""mp_lora_ and mp_lora_linear against the stacked LoRA-B of public P-RGE, and against the bare linear.

    python -m benchmarks.cpu.bench_mp_lora [--json FILE] [--threads N] [--quick] [--shapes large|few|all]

All variants compute the adapted linear of all G groups (two-sided: q = G / 2 directions), and are checked to
agree before they are timed. Ours make the directions from their seeds inside the call. The peer finds its
perturbed B [G, ...] made: it pays for one product x A^T and one batched product added in place, from the
faster of two layouts, [G, out, r] as P-RGE keeps it and [G, r, out]. What a step pays to make the stack (draw
q directions, add and subtract them) is a column of its own. With bfloat16, x, W and the peer's A and B are
bfloat16, its fastest form, which rounds eps z into B; ours keep A and B float32.

The limit is `F.linear` alone. A sample goes through 8 layers, each with its own operands, as in a model: no
variant finds its weights in the cache because it has just used them. Times are per layer.

Columns: ms of F.linear; how much longer than it the others take, in %; the same for F.linear with the peer
and the making of its stack; the us of the op mp_lora_ by itself, and the share of them that its noise takes:
what the same call saves when all its coefficients are 0, which adds nothing to B and, but for directions
"outer", draws nothing.

Goals for mp_lora_ with directions "outer": in float32 at most +7 %, +5 % and +2 % in the order of the first
rows, +6 % with 64 groups of one row; in bfloat16 +20 %, +12 %, +6 % and +15 %; never above the stacked form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F

from benchmarks.harness import Report, Variant, dtype_name, fastest, parser, time_variants
from benchmarks.peers import make_sign_stack_, make_stack_, stacked_lora_linear
from mobizo_kernels import ops
from mobizo_kernels.ops.checks import DISTRIBUTIONS

LAYERS = 8
EPS, SCALING = 1e-2, 2.0
# Rows, in, out, rank, groups: q_proj and gate_proj of SmolLM2-135M, a square layer of a 1B model.
SHAPES = (
    (2048, 576, 576, 16, 8),
    (2048, 576, 1536, 16, 8),
    (2048, 2048, 2048, 16, 8),
    (256, 576, 576, 4, 16),
)
# Many groups of few rows, 1 to 32, as adapters on the last tokens of few samples make them.
FEW_ROWS = (
    (16, 576, 192, 8, 16),
    (16, 576, 576, 8, 16),
    (32, 576, 576, 8, 16),
    (128, 576, 576, 8, 16),
    (512, 576, 576, 8, 16),
    (32, 576, 576, 4, 16),
    (64, 576, 576, 8, 32),
    (64, 576, 576, 4, 64),
    (64, 576, 576, 8, 64),
    (128, 2048, 2048, 8, 64),
)
QUICK_SHAPES = ((64, 48, 32, 4, 4),)


@dataclass(frozen=True)
class Layer:
    """The operands of one linear: ours, and the peer's in the dtype of x."""

    stream: int
    x: torch.Tensor
    weight: torch.Tensor
    lora_a: torch.Tensor
    lora_b: torch.Tensor
    seeds: torch.Tensor
    coeffs: torch.Tensor
    zeros: torch.Tensor
    distribution: str
    base: torch.Tensor
    peer_a: torch.Tensor
    stack: torch.Tensor
    stack_t: torch.Tensor

    def mp_lora(self) -> torch.Tensor:
        return self.adapter(F.linear(self.x, self.weight), self.coeffs)

    def adapter(self, base: torch.Tensor, coeffs: torch.Tensor) -> torch.Tensor:
        directions = (self.seeds, coeffs, SCALING, self.stream, self.distribution)
        return ops.mp_lora_(base, self.x, self.lora_a, self.lora_b, *directions)

    def mp_lora_linear(self) -> torch.Tensor:
        directions = (self.seeds, self.coeffs, SCALING, self.stream, self.distribution)
        return ops.mp_lora_linear(self.x, self.weight, None, self.lora_a, self.lora_b, *directions)

    def stacked(self) -> torch.Tensor:
        return stacked_lora_linear(self.x, self.weight, self.peer_a, self.stack.mT, SCALING)

    def stacked_t(self) -> torch.Tensor:
        return stacked_lora_linear(self.x, self.weight, self.peer_a, self.stack_t, SCALING)


def make_layer(
    stream: int,
    rows: int,
    in_features: int,
    out_features: int,
    rank: int,
    groups: int,
    dtype: torch.dtype,
    distribution: str = "gaussian",
) -> Layer:
    """Random operands; the peer's stack holds the directions of our seeds."""
    lora_a = torch.randn(rank, in_features) / in_features**0.5
    lora_b = torch.randn(out_features, rank) / rank**0.5
    seeds = torch.arange(groups // 2).repeat(2)
    coeffs = torch.tensor([EPS, -EPS]).repeat_interleave(groups // 2)
    noise = [ops.noise([out_features, rank], seed, stream, distribution) for seed in seeds]
    stack = torch.stack([lora_b + coeff * z for coeff, z in zip(coeffs, noise, strict=True)]).to(dtype)
    return Layer(
        stream=stream,
        x=torch.randn(rows, in_features).to(dtype),
        weight=(torch.randn(out_features, in_features) / in_features**0.5).to(dtype),
        lora_a=lora_a,
        lora_b=lora_b,
        seeds=seeds,
        coeffs=coeffs,
        zeros=torch.zeros(groups),
        distribution=distribution,
        base=torch.zeros(rows, out_features, dtype=dtype),
        peer_a=lora_a.to(dtype),
        stack=stack,
        stack_t=stack.mT.contiguous(),
    )


def check(layer: Layer) -> None:
    """Raise AssertionError unless all variants compute the same."""
    expected = layer.mp_lora()
    tolerance = 1e-4 if layer.x.dtype == torch.float32 else 1e-1
    for result in (layer.mp_lora_linear(), layer.stacked(), layer.stacked_t()):
        torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


def variants(layers: list[Layer]) -> dict[str, Variant]:
    """By name. A call goes through all layers, as a forward does: no operand is cached from the last one."""
    peer_b = [layer.lora_b.mT.to(layer.x.dtype).contiguous() for layer in layers]
    room = torch.empty_like(layers[0].stack_t)
    noise = torch.empty_like(room[: len(room) // 2])
    make = make_stack_ if layers[0].distribution == "gaussian" else make_sign_stack_

    def through_layers(run: Callable[[Layer], object]) -> Variant:
        def variant() -> None:
            for layer in layers:
                run(layer)

        return variant

    def alone(layer: Layer) -> torch.Tensor:
        return layer.adapter(layer.base, layer.coeffs)

    def alone_clean(layer: Layer) -> torch.Tensor:
        return layer.adapter(layer.base, layer.zeros)

    return {
        "F.linear": through_layers(lambda layer: F.linear(layer.x, layer.weight)),
        "mp_lora_": through_layers(Layer.mp_lora),
        "mp_lora_linear": through_layers(Layer.mp_lora_linear),
        "stacked [G, out, r]": through_layers(Layer.stacked),
        "stacked [G, r, out]": through_layers(Layer.stacked_t),
        "make stack": through_layers(lambda layer: make(room, noise, peer_b[layer.stream], EPS)),
        "mp_lora_ alone": through_layers(alone),
        "mp_lora_ alone, coefficients 0": through_layers(
            lambda layer: layer.adapter(layer.base, layer.zeros)
        ),
    }


def compare(
    report: Report,
    rounds: int,
    dtype: torch.dtype,
    shape: tuple[int, int, int, int, int],
    distribution: str,
) -> None:
    """Add one row."""
    layers = [make_layer(stream, *shape, dtype, distribution) for stream in range(LAYERS)]
    for layer in layers:
        check(layer)
    timings = time_variants(variants(layers), rounds)
    limit = timings["F.linear"].p50
    peer = timings[fastest(timings, ("stacked [G, out, r]", "stacked [G, r, out]"))].p50
    alone = timings["mp_lora_ alone"].p50
    clean = timings["mp_lora_ alone, coefficients 0"].p50
    rows, in_features, out_features, rank, groups = shape
    report.add(
        {
            "dtype": dtype_name(dtype),
            "noise": distribution,
            "rows": rows,
            "in": in_features,
            "out": out_features,
            "r": rank,
            "G": groups,
        },
        timings,
        {
            "F.linear ms": timings["F.linear"].show(1e3 / LAYERS),
            "mp_lora_ %": 100 * (timings["mp_lora_"].p50 / limit - 1),
            "mp_lora_linear %": 100 * (timings["mp_lora_linear"].p50 / limit - 1),
            "stacked %": 100 * (peer / limit - 1),
            "stacked, made %": 100 * ((peer + timings["make stack"].p50) / limit - 1),
            "alone us": timings["mp_lora_ alone"].show(1e6 / LAYERS),
            "noise share %": 100 * (1 - clean / alone),
        },
    )


@torch.no_grad()
def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--shapes", choices=("large", "few", "all"), default="all", help="rows per group")
    options = arguments.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)  # the agreement of the variants is checked: the same way in every run
    report = Report("mp_lora", options)
    large, few, rounds = (QUICK_SHAPES, (), 3) if options.quick else (SHAPES, FEW_ROWS, 41)
    cases = [*product(large, ("gaussian", "outer"))] if options.shapes != "few" else []
    cases += [*product(few, DISTRIBUTIONS)] if options.shapes != "large" else []
    for dtype, (shape, distribution) in product((torch.float32, torch.bfloat16), cases):
        compare(report, rounds, dtype, shape, distribution)
    report.finish()


if __name__ == "__main__":
    main()
