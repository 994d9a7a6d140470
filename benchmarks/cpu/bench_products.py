"""A float32 linear by torch and by the oneDNN that torch carries, on this CPU.

    python -m benchmarks.cpu.bench_products [--json FILE] [--threads N] [--quick]

torch gives float32 products to its BLAS, in the usual builds MKL. Steps and evaluations of a float32 model
take oneDNN where MKL is known to be slow (mobizo_kernels/loss/float32_products.py); "chosen" says which it is
here.

Columns: us per call of `F.linear`; time of oneDNN over it; GFLOP/s of both. Shapes are those of SmolLM2 and
TinyLlama, of whole batches and of a few tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from benchmarks.harness import Report, parser, time_variants
from mobizo_kernels.loss.float32_products import mkl_is_slow

SHAPES = [
    (rows, *sizes)
    for rows in (64, 2048)
    for sizes in ((576, 576), (576, 1536), (1536, 576), (2048, 2048), (2048, 5632))
]


@torch.no_grad()
def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(options.threads)
    report = Report("products", options)
    for rows, width, height in SHAPES[:2] if options.quick else SHAPES:
        x, weight = torch.randn(rows, width), torch.randn(height, width)
        timings = time_variants(
            {
                "F.linear": lambda x=x, weight=weight: F.linear(x, weight),
                "oneDNN": lambda x=x, weight=weight: torch.ops.mkldnn._linear_pointwise(
                    x, weight, None, "none", [], ""
                ),
            },
            rounds=3 if options.quick else 15,
        )
        blas, onednn = timings["F.linear"], timings["oneDNN"]
        operations = 2e-9 * rows * width * height
        report.add(
            {"rows": rows, "in": width, "out": height},
            timings,
            {
                "us": blas.show(1e6),
                "oneDNN / F.linear": onednn.p50 / blas.p50,
                "GFLOP/s": operations / blas.p50,
                "of oneDNN": operations / onednn.p50,
                "chosen": "oneDNN" if mkl_is_slow() else "F.linear",
            },
        )
    report.finish()


if __name__ == "__main__":
    main()
