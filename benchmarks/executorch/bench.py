"""A step inside ExecuTorch against the bare forward of its rows, the paper's dual forward and first order.

    python -m benchmarks.executorch.bench [--model 20m|smollm2] [--cases NAME ...] [--threads N]
        [--processor-time] [--json FILE]

Every forward has 32 rows: q * B = 16, each direction with both signs. A row is T tokens and a label, one of
two candidate tokens; adapters have rank 8, on q_proj and v_proj. "20m" is a Llama of 20 million random
weights.

- forward: the limit. The same decoder and loss, in the same forms, lowered by the same partitioner, with no
  adapter. Cases with 16 rows are measured against a limit of 16 rows.
- ours: `train_step` of an exported training program, with all of its methods loaded, as by the trainer;
  "nocache" is without the cache through which XNNPACK's delegates share packed weights.
- half, whole, prefix: ours where groups share a part, only if named. half: the upper half of the layers is
  tuned. whole: v_proj of the upper two thirds, q * B = 64; prefix-n: the same by Activated LoRA on the last n
  tokens of a row. Each is measured against the forward of all its rows.
- outer, delegated: ours along directions "outer", by our op and in one delegate, only if named; with 32
  directions a step has 64 rows. The host's part of a delegated step, update and directions, is timed with it.
- dual: the paper's dual-forward module, in the form and with the caveats that are printed below the table.
- fo: first-order training, LoRA-FA by back-propagation and SGD, from the same wheel; caveats below as well.
  Its slow forms, "portable" and "per-op", run only if they are named.

Every case has a process of its own, all of one native program (driver.cpp) that has neither Python
nor torch in it. The processes make their steps in turns. Programs are kept in the folder --programs, by all
that they depend on: making them takes ExecuTorch most of a minute each for "20m", minutes for SmolLM2.

Columns: seconds per step, of processor time with --processor-time; MB (10^6 bytes) at the peak of the
process, loading included (VmHWM), and of what is no mapped file (RssAnon) at the end; MB of planned arenas;
MB of the .pte; the loss of the first step, and how far it is from the eager float32 model's without adapters;
time and peak relative to the limit; MB over its peak and over its RssAnon. The limit's peak comes while it
loads and packs its weights.
Goals: ours at most 1.05 x the time and the peak of the limit, int8 at most 0.35 x the .pte of float32.
"""

from __future__ import annotations

import multiprocessing
import warnings
from pathlib import Path
from time import perf_counter

from benchmarks.executorch.cases import MODELS, Case, Files, all_cases, chosen, files_of
from benchmarks.executorch.driver import Worker, build_driver
from benchmarks.harness import Report, count, parser, time_variants

MB = 1e6
QUICK = ["ours-q4-none", "dual-q1-none", "fo-rewritten-32"]

CAVEATS = """
dual: our own module after the paper's description, whose public code has no loss in the graph. q is 1; eps
  and the learning rate are constants of the program. Noise is ExecuTorch's randn, a std::mt19937 seeded by
  the system: no run can be repeated, rebuilt from its scalars or moved. Two B are kept where ours keeps one.
fo: float32 weights only. "portable" and "per-op" are the joint graph as the wheel lowers it, with
  transposed copies of the weights in the arena; "rewritten" is rewritten by this benchmark for XNNPACK
  (first_order.py), which no user of the wheel gets, and holds every weight twice, once transposed.
  One step of first order is worth many of zeroth order.
"""


def make_missing(cases: list[Case], model: str, length: int, folder: Path) -> dict[str, Files]:
    """The programs of the cases by name; what is not kept is made, each in a process that then ends."""
    files = {case.name: files_of(case, model, length, folder) for case in cases}
    for case in cases:
        if files[case.name].exist():
            continue
        print(f"exporting {case.name}", flush=True)
        process = multiprocessing.get_context("spawn").Process(
            target=make_program, args=(case, model, length, files[case.name])
        )
        process.start()
        process.join()
        if process.exitcode != 0:
            raise SystemExit(f"benchmarks.executorch: exporting {case.name} failed; its own error is above")
    return files


def make_program(case: Case, model: str, length: int, files: Files) -> None:
    """What a process of `make_missing` does."""
    warnings.simplefilter("ignore")  # ExecuTorch's compiler warns of itself, hundreds of times
    from benchmarks.executorch.programs import make  # it is needed in these processes only

    make(case, model, length, files)


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--model", choices=MODELS, default="20m", help="what to step")
    options_parser.add_argument(
        "--cases",
        nargs="+",
        choices=list(all_cases()),
        default=[],
        metavar="NAME",
        help=f"of {', '.join(all_cases())}; each comes with its limit",
    )
    options_parser.add_argument("--length", type=count, default=64, help="tokens before the label")
    options_parser.add_argument("--rounds", type=count, default=11, help="steps of each case to time")
    options_parser.add_argument(
        "--processor-time", action="store_true", help="of each step: for a machine that has other work"
    )
    options_parser.add_argument(
        "--programs", default="build/programs", metavar="FOLDER", help="where to keep the programs"
    )
    options = options_parser.parse_args()
    if options.rounds < 2:
        options_parser.error(f"argument --rounds: expected at least 2, got {options.rounds}")
    if options.length < 4:
        options_parser.error(f"argument --length: expected at least 4, got {options.length}")
    if options.quick:
        vars(options).update(model="tiny", length=8, rounds=2, cases=options.cases or QUICK)

    driver = build_driver()
    cases = chosen(options.cases, options.model)
    files = make_missing(cases, options.model, options.length, Path(options.programs))
    report = Report("executorch", options)
    workers = {case.name: Worker(driver, case, files[case.name], options.threads) for case in cases}
    clock = (lambda: sum(w.busy for w in workers.values())) if options.processor_time else perf_counter
    steps = {name: worker.step for name, worker in workers.items()}
    timings = time_variants(steps, options.rounds, clock=clock)
    for case in cases:
        worker, limit = workers[case.name], workers[case.limit]
        worker.finish()
        memory, least = worker.latest, limit.latest
        report.add(
            {"case": case.name},
            {case.name: timings[case.name]},
            {
                "s per step": timings[case.name].show(1.0),
                "peak MB": memory["peak"] / MB,
                "anon MB": memory["anonymous"] / MB,
                "planned MB": worker.planned / MB,
                ".pte MB": files[case.name].program.stat().st_size / MB,
                "loss": worker.first["loss"],
                "off": worker.first["loss"] - files[case.name].loss,
                "time / limit": timings[case.name].p50 / timings[case.limit].p50,
                "peak / limit": memory["peak"] / least["peak"],
                "+peak MB": (memory["peak"] - least["peak"]) / MB,
                "+anon MB": (memory["anonymous"] - least["anonymous"]) / MB,
            },
        )
    report.finish()
    print(CAVEATS)


if __name__ == "__main__":
    main()
