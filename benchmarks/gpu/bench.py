"""The ops and a whole step on one GPU: checked first, then timed against what users have today.

    python -m benchmarks.gpu.bench [--stage ops|steps] [--only PART ...] [--until TIME] [--json FILE]

`benchmarks/run_gpu.sh --stage ...` builds what this needs and calls it. Both stages are made of parts, the
most telling first. The JSON file is written as soon as there is something new, and `--until` ends the run
wherever it is, with the tables of what was measured: nothing is lost but what it had not come to.

Every op is compared with known answers, numpy, float64 or the CPU before it is timed; an op that is wrong is
not. Times are of CUDA graph replays between two events, medians with the 20 and 80 % quantiles; the variants
of a row take turns, on operands that rotate through more memory than the last-level cache holds.

Stage ops
  perturb: perturb_ and zo_update against a copy of the same bytes, and MeZO's perturbation by materialised
    noise in the faster of two forms, with and without its allocations.
  foreach: foreach_perturb_ over every LoRA-B of TinyLlama-1.1B (rank 16 on q and v), one launch, against the
    same.
  linear: layers of TinyLlama-1.1B and Llama-2-7B in bfloat16, E = 16 = q B sequences with both signs, so 32 T
    rows: mp_lora_linear, F.linear with mp_lora_, the fused kernel (over a bfloat16 A), the stacked B of
    public P-RGE in the faster of two layouts ("made": with the making of its stack), and a copy of the bytes
    of x, W and y, against F.linear alone.
  noise: against a fill of the same tensor and torch's generators.
  optimizers: zo_momentum, zo_adam, zo_sign against torch's fused SGD and Adam and `sign_`, on a materialised
    gradient, and a copy of the same bytes.
  parameters: foreach_perturb_ over all parameters of TinyLlama-1.1B by one launch, in float32 and bfloat16,
    against MeZO's torch.normal and a copy.

Stage steps: random weights, 32 rows; kernel by kernel, as a CUDA graph, and compiled by torch.
  adapters: TinyLlama-1.1B: the bare forward of the same rows, ours, MeZO, public P-RGE, first-order LoRA-FA
    with and without checkpointing. compiled: the bare forward and ours.
  all_parameters: ours and MeZO. large: Llama-2-7B. bases: over int8 and NF4, where torchao and bitsandbytes
    are. sharing: layers and tokens shared between the groups. settings: other q and T. compiled_peer: first
    order.

Tables `predictions`, `assumptions` and `fuses` set what the models behind the tiles predict beside what was
measured. Goals are those of an H100 or H200. `--device cpu --quick` runs the same program with tiny sizes on
the CPU; its times mean nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.gpu import ops
from benchmarks.gpu.check import check
from benchmarks.gpu.models import bases
from benchmarks.gpu.report import GpuReport
from benchmarks.gpu.steps import (
    COMPILE,
    FULL_PARAMETERS,
    LARGE_MODEL,
    OTHER_SETTINGS,
    PEERS,
    SHARING,
    SMALL_MODEL,
    Case,
    WholeSteps,
)
from benchmarks.gpu.timing import Stopwatch
from benchmarks.harness import count, parser

LIMITS = ("bare forward", "ours")


@dataclass(frozen=True)
class Part:
    """A piece of a stage.

    Attributes:
        name: for the option `--only` and the report.
        run: what it does.
        check: key of `check.CHECKS`: what has to be right before.
    """

    name: str
    run: Callable[[], None]
    check: str


def stages(report: GpuReport, device: torch.device, quick: bool) -> dict[str, list[Part]]:
    """All parts, in the order in which they run."""
    watch = Stopwatch(device, rounds=5 if quick else 21)
    extent = ops.TINY if device.type == "cpu" else ops.QUICK if quick else ops.FULL
    steps = WholeSteps(report, device, quick)

    def each(cases: list[Case], names: tuple[str, ...]) -> None:
        for case in cases:
            steps.measure(case, names)

    quantised = [Case(base=name) for name in bases()]
    return {
        "ops": [
            Part("perturb", lambda: ops.perturbations(report, watch, extent), "updates"),
            Part("foreach", lambda: ops.every_adapter(report, watch), "updates"),
            Part("linear", lambda: ops.linears(report, watch, extent), "adapters"),
            Part("noise", lambda: ops.noise(report, watch, extent), "updates"),
            Part("optimizers", lambda: ops.optimizers(report, watch, extent), "optimizers"),
            Part("parameters", lambda: ops.every_parameter(report, watch), "updates"),
        ],
        "steps": [
            Part("adapters", partial(steps.measure, SMALL_MODEL, (*LIMITS, *PEERS)), "step"),
            Part("compiled", partial(steps.measure, SMALL_MODEL, LIMITS, (COMPILE,)), "step"),
            Part("all_parameters", partial(steps.measure, SMALL_MODEL, FULL_PARAMETERS), "step"),
            Part("large", partial(steps.measure, LARGE_MODEL, (*LIMITS, *PEERS)), "step"),
            Part("bases", partial(each, quantised, LIMITS), "step"),
            Part("sharing", partial(steps.measure, SMALL_MODEL, SHARING), "step"),
            Part(
                "settings",
                partial(each, OTHER_SETTINGS[: 1 if quick else None], (*LIMITS, *PEERS[:2])),
                "step",
            ),
            Part("compiled_peer", partial(steps.measure, SMALL_MODEL, ("first order",), (COMPILE,)), "step"),
        ],
    }


def run(report: GpuReport, parts: list[Part], device: torch.device) -> None:
    """Run the parts in order, each after its check; what fails is told and costs nothing else."""
    checked: dict[str, bool] = {}
    for part in parts:
        report.begin(part.name)
        try:
            if part.check not in checked:
                comparisons, wrong = check(part.check, device)
                report.compared(comparisons, wrong)
                checked[part.check] = not wrong
            if checked[part.check]:
                part.run()
                report.end(part.name)
            else:
                report.end(part.name, f"not timed, for the check of {part.check} found something wrong")
        except Exception as error:  # whatever it is, the parts that follow are worth their time
            first_line = (str(error).splitlines() or [""])[0]
            report.end(part.name, f"failed: {type(error).__name__}: {first_line}")


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--stage", choices=("ops", "steps"), help="one stage; both by default")
    options_parser.add_argument(
        "--until",
        type=count,
        metavar="TIME",
        help="end then, in seconds since 1970, as `date +%%s` gives them",
    )
    options_parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="to run on")
    options_parser.add_argument("--only", nargs="+", metavar="PART", help="what to time")
    options = options_parser.parse_args()
    if options.device == "cpu" and not options.quick:
        options_parser.error(
            "argument --device: cpu needs --quick, for it only proves that the program works"
        )
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "benchmarks.gpu: torch sees no CUDA or ROCm device, so nothing was measured "
            "(--device cpu --quick runs the program without one)"
        )
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    measure(options, options_parser)


@torch.no_grad()
def measure(options: argparse.Namespace, options_parser: argparse.ArgumentParser) -> None:
    """Run what the options name and report it."""
    device = torch.device(options.device)
    report = GpuReport(options, device)
    every = [
        part
        for name, parts in stages(report, device, options.quick).items()
        for part in parts
        if options.stage in (None, name)
    ]
    names = [part.name for part in every]
    for name in options.only or ():
        if name not in names:
            options_parser.error(f"argument --only: expected some of {', '.join(names)}, got {name}")
    parts = [part for part in every if part.name in (options.only or names)]
    report.plan([part.name for part in parts])
    run(report, parts, device)
    report.finish()
    raise SystemExit(1 if report.troubled else 0)


if __name__ == "__main__":
    main()
