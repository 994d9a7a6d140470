"""perturb_, foreach_perturb_ and zo_update against MeZO's perturbation by materialised noise.

    python -m benchmarks.cpu.bench_perturb [--json FILE] [--threads N] [--quick]

The peer does what MeZO (arXiv 2305.17333) does to perturb or update: draw a gaussian tensor and add it. It is
the fastest of three forms: `param.add_(torch.normal(...), alpha=c)` as in its public code; the noise drawn by
one call into memory that is kept; and, for 16-bit parameters, that in float32. With several seeds it needs
as many passes. Rademacher is also compared with "signs", the same with `random_` for the noise; directions
"outer" with `perturb_` of as many Rademacher ones, in the last row with 32 seeds on 2^24 values.

The limit is a memory pass over the same parameters, `param.mul_(1.0001)`. 2^14 values stay in the cache, 2^22
do not; they are a matrix, as square as a power of two allows. "60 LoRA-B" are those of SmolLM2-135M (q_proj
[576, 16] and v_proj [192, 16] in 30 layers), by one foreach_perturb_, and by zo_update in a loop.

Columns: ns per value, all seeds together; how many times faster than the peers; share of the speed of the
pass. Goals: for one seed on 2^22 float32, gaussian at least 6 x MeZO, rademacher 15 x MeZO and 0.7 of a pass;
for 32 seeds on 2^24, outer 8 x rademacher.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch

from benchmarks.harness import Report, Variant, dtype_name, fastest, parser, time_variants
from benchmarks.peers import MaterialisedNoise, mezo_perturb_
from mobizo_kernels import ops
from mobizo_kernels.ops.checks import DISTRIBUTIONS, STORAGE_DTYPES

LORA_B_SHAPES = [(576, 16), (192, 16)] * 30
COEFF = 1e-4


def ours(params: list[torch.Tensor], n_seeds: int, distribution: str) -> dict[str, Variant]:
    """The ops, on parameters that they change in place."""
    seeds, coeffs = torch.arange(n_seeds), torch.full((n_seeds,), COEFF)
    streams = range(len(params))

    def perturb() -> None:
        if len(params) == 1:
            ops.perturb_(params[0], seeds, coeffs, streams[0], 1.0, distribution)
        else:
            ops.foreach_perturb_(params, seeds, coeffs, streams, 1.0, distribution)

    def update() -> None:
        for param, stream in zip(params, streams, strict=True):
            ops.zo_update(param, seeds, coeffs, stream, 1.0, distribution)

    return {"perturb_": perturb, "zo_update": update}


def mezo(params: list[torch.Tensor], n_seeds: int) -> dict[str, Variant]:
    """The forms of MeZO."""
    kept = MaterialisedNoise(params)
    forms: dict[str, Variant] = {
        "MeZO": repeated(n_seeds, lambda: mezo_perturb_(params, COEFF)),
        "MeZO, kept noise": repeated(n_seeds, lambda: kept.add_gaussian(COEFF)),
    }
    if params[0].dtype != torch.float32:
        single = MaterialisedNoise(params, torch.float32)
        forms["MeZO, kept float32 noise"] = repeated(n_seeds, lambda: single.add_gaussian(COEFF))
    return forms


def repeated(times: int, once: Variant) -> Variant:
    """`once`, as often as that."""
    return lambda: [once() for _ in range(times)]


def compare(
    report: Report, rounds: int, label: str, params: list[torch.Tensor], n_seeds: int, distribution: str
) -> None:
    """Add one row."""
    forms, kept = mezo(params, n_seeds), MaterialisedNoise(params)
    timings = time_variants(
        {
            **ours(params, n_seeds, distribution),
            **forms,
            "signs": repeated(n_seeds, lambda: kept.add_rademacher(COEFF)),
            "rademacher": ours(params, n_seeds, "rademacher")["perturb_"],
            "pass": lambda: torch._foreach_mul_(params, 1.0001),
        },
        rounds,
    )
    per_value = 1e9 / sum(param.numel() for param in params)
    peer = timings[fastest(timings, forms)].p50
    perturb, update = timings["perturb_"].p50, timings["zo_update"].p50
    report.add(
        {
            "threads": torch.get_num_threads(),
            "values": label,
            "dtype": dtype_name(params[0].dtype),
            "seeds": n_seeds,
            "distribution": distribution,
        },
        timings,
        {
            "perturb_ ns": timings["perturb_"].show(per_value),
            "x MeZO": peer / perturb,
            "x signs": timings["signs"].p50 / perturb if distribution == "rademacher" else "-",
            "x rademacher": timings["rademacher"].p50 / perturb if distribution == "outer" else "-",
            "of pass": timings["pass"].p50 / perturb,
            "zo_update ns": timings["zo_update"].show(per_value),
            "x MeZO (update)": peer / update,
        },
    )


def matrix(power: int) -> tuple[int, int]:
    """A shape of 2^power values."""
    return 2 ** (power // 2), 2 ** (power - power // 2)


@torch.no_grad()
def main() -> None:
    options = parser(__doc__).parse_args()
    report = Report("perturb", options)
    rounds, powers = (3, (10, 14)) if options.quick else (21, (14, 22))
    cases: list[tuple[str, Sequence[tuple[int, ...]], torch.dtype]] = [
        *((f"2^{power}", [matrix(power)], dtype) for power, dtype in product(powers, STORAGE_DTYPES)),
        ("60 LoRA-B", LORA_B_SHAPES, torch.float32),
    ]
    for threads, (label, shapes, dtype), n_seeds, distribution in product(
        sorted({1, options.threads}), cases, (1, 4), DISTRIBUTIONS
    ):
        torch.set_num_threads(threads)
        params = [torch.randn(shape).to(dtype) for shape in shapes]
        compare(report, rounds, label, params, n_seeds, distribution)
    many, n_seeds = (14, 4) if options.quick else (24, 32)
    compare(report, 3, f"2^{many}", [torch.randn(matrix(many))], n_seeds, "outer")
    report.finish()


if __name__ == "__main__":
    main()
