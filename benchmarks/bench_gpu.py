"""The ops and a whole step on one GPU: checked first, then timed against what users have today.

    python -m benchmarks.bench_gpu [--json FILE] [--quick] [--only noise optimizers foreach ...]

Every op is compared with numpy, float64 or the CPU before anything is timed. Times are of CUDA graph replays
between two events, medians with the 20 and 80 % quantiles; the variants of a row take turns, on operands that
rotate through more memory than the last-level cache holds.

noise, perturb_, zo_update: against a fill or copy of the same bytes, torch's generators, and MeZO's
perturbation by materialised noise in the faster of two forms, with and without its allocations.
zo_momentum, zo_adam, zo_sign: against torch's fused SGD and Adam and `sign_`, on a materialised gradient, and
a copy of the same bytes.
foreach_perturb_: every LoRA-B of TinyLlama-1.1B (rank 16 on q and v) by one launch, against the same.
full parameters: all of its parameters by one launch, in float32 and bfloat16, against MeZO's torch.normal and
a copy.
mp_lora_linear: layers of TinyLlama-1.1B and Llama-2-7B in bfloat16, E = 16 = q B sequences with both signs,
so 32 T rows, against F.linear alone, F.linear with mp_lora_, the stacked B of public P-RGE in the faster of
two layouts ("made": with the making of its stack), and a copy of the bytes of x, W and y.
step: TinyLlama-1.1B and Llama-2-7B with random weights: ours, also with layers and tokens shared between the
groups, against the bare forward of the same rows, public P-RGE, sequential MeZO and first-order LoRA-FA with
and without checkpointing; over a bfloat16 base and, where torchao and bitsandbytes are, int8 and NF4; all
parameters against MeZO. Kernel by kernel, as a CUDA graph, and compiled by torch.

The JSON file is written after each part: what was measured is not lost if the run ends early.

Goals, those of an H100 or H200, are printed beside the figures. `--device cpu --quick` runs the same program
with tiny sizes on the CPU; its times mean nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from benchmarks.gpu_check import check_all
from benchmarks.gpu_ops import (
    FULL,
    QUICK,
    TINY,
    every_adapter,
    every_parameter,
    linears,
    noise_and_updates,
    optimizers,
)
from benchmarks.gpu_report import GpuReport
from benchmarks.gpu_steps import whole_steps
from benchmarks.gpu_timing import Stopwatch
from benchmarks.harness import parser

PARTS = ("noise", "optimizers", "foreach", "parameters", "linear", "step")


@torch.no_grad()
def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="to run on")
    options_parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="what to time")
    options = options_parser.parse_args()
    if options.device == "cpu" and not options.quick:
        options_parser.error(
            "argument --device: cpu needs --quick, for it only proves that the program works"
        )
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "bench_gpu: torch sees no CUDA or ROCm device, so nothing was measured "
            "(--device cpu --quick runs the program without one)"
        )
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    device = torch.device(options.device)
    watch = Stopwatch(device, rounds=5 if options.quick else 21)
    extent = TINY if options.device == "cpu" else QUICK if options.quick else FULL
    report = GpuReport(options, device)
    print(f"correct in all of {check_all(device)} comparisons")
    parts: dict[str, Callable[[], None]] = {
        "noise": lambda: noise_and_updates(report, watch, extent),
        "optimizers": lambda: optimizers(report, watch, extent),
        "foreach": lambda: every_adapter(report, watch),
        "parameters": lambda: every_parameter(report, watch),
        "linear": lambda: linears(report, watch, extent),
        "step": lambda: whole_steps(report, device, options.quick),
    }
    for name in options.only:
        parts[name]()
        report.save()
    report.finish()


if __name__ == "__main__":
    main()
