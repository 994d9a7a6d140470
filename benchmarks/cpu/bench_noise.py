"""noise: a materialised direction against torch's own random numbers, and against the memory it takes.

    python -m benchmarks.cpu.bench_noise [--json FILE] [--threads N] [--quick]

Ours returns a new tensor, as an op does. The peers fill a tensor that exists: their best case, free of
allocation. gaussian: `normal_`, which on a CPU runs on one thread whatever their number; for 16-bit types
also `normal_` in float32 and a copy. rademacher: `random_`, `bernoulli_`, and the signs of `uniform_`. "peer"
is the fastest of them.

The limits are memory passes: `torch.full`, the cheapest way to a new tensor of the same bytes and so like for
like, and `fill_`, which allocates nothing. 2^14 values stay in the cache, 2^22 do not.

Columns: ns of ours per value; how many times faster than `normal_` and than the peer; share of the speed of a
pass. Goal: gaussian at least 4 x normal_ on one thread.
"""

from __future__ import annotations

from itertools import product

import torch

from benchmarks.harness import Report, Variant, dtype_name, fastest, parser, time_variants
from mobizo_kernels import ops
from mobizo_kernels.ops.checks import DISTRIBUTIONS


def peers(out: torch.Tensor, distribution: str) -> dict[str, Variant]:
    """Ways of torch to draw from the distribution into `out`."""
    if distribution == "rademacher":
        return {
            "random_": lambda: out.random_(0, 2).mul_(2).sub_(1),
            "bernoulli_": lambda: out.bernoulli_(0.5).mul_(2).sub_(1),
            "uniform_": lambda: out.uniform_(-1, 1).sign_(),
        }
    if out.dtype == torch.float32:
        return {"normal_": out.normal_}
    single = torch.empty_like(out, dtype=torch.float32)
    return {"normal_": out.normal_, "float32 normal_": lambda: out.copy_(single.normal_())}


def compare(report: Report, rounds: int, size: int, distribution: str, dtype: torch.dtype) -> None:
    """Add one row."""
    seed, out = torch.tensor(7), torch.empty(size, dtype=dtype)
    same_draw = peers(out, distribution)
    variants: dict[str, Variant] = {
        "ours": lambda: ops.noise([size], seed, 3, distribution, dtype=dtype),
        "torch.full": lambda: torch.full((size,), 1.0, dtype=dtype),
        "fill_": lambda: out.fill_(1.0),
        "normal_": out.normal_,
        **same_draw,
    }
    timings = time_variants(variants, rounds)
    ours, peer = timings["ours"].p50, fastest(timings, same_draw)
    report.add(
        {
            "threads": torch.get_num_threads(),
            "values": size,
            "dtype": dtype_name(dtype),
            "distribution": distribution,
        },
        timings,
        {
            "ns per value": timings["ours"].show(1e9 / size),
            "x normal_": timings["normal_"].p50 / ours,
            "x peer": timings[peer].p50 / ours,
            "peer": peer,
            "of torch.full": timings["torch.full"].p50 / ours,
            "of fill_": timings["fill_"].p50 / ours,
        },
    )


@torch.no_grad()
def main() -> None:
    options = parser(__doc__).parse_args()
    report = Report("noise", options)
    sizes, rounds = ((2**10, 2**14), 3) if options.quick else ((2**14, 2**22), 31)
    dtypes = (torch.float32, torch.bfloat16)
    for threads, size, dtype, distribution in product(
        sorted({1, options.threads}), sizes, dtypes, DISTRIBUTIONS
    ):
        torch.set_num_threads(threads)
        compare(report, rounds, size, distribution, dtype)
    report.finish()


if __name__ == "__main__":
    main()
