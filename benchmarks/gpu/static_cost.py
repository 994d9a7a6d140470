"""What the Triton kernels cost by their machine code, for GPUs that need not be here.

    python -m benchmarks.gpu.static_cost [--targets sm_80 sm_90 gfx942] [--jobs N] [--json FILE] [--docs FILE]

Runs the package's own wrappers under a driver that compiles and launches nothing (benchmarks/gpu/targets.py),
over the launches of benchmarks/gpu/launches.py, in a process for each target. The table has a line for each
kernel, dtype and distribution: instructions, each counted once however often it runs; registers of a thread;
bytes of shared memory of a block; ranges over ranks, shapes and alignments. Its last three lines are the
instructions per value of noise: what a block twice as long adds, store included. `--docs docs/triton.md`
puts it there, between its two markers.

Exits with 1 if a kernel spills registers, needs more shared memory than the target has, or does not compile.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import traceback
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import torch
import triton
import triton.language as tl

from benchmarks.gpu import targets
from benchmarks.gpu.targets import DEVICES, Kernel
from benchmarks.harness import count
from mobizo_kernels.ops.checks import DISTRIBUTIONS
from mobizo_kernels.triton.philox import noise_run
from mobizo_kernels.triton.signs import outer_run, places_of_signs

MARKER = "<!-- static cost -->"
BLOCKS, WARPS = (2048, 4096), 4  # of noise alone


def compile_all(target: str) -> tuple[list[Kernel], list[str], set[str]]:
    """The compiled kernels of one target, what failed, and which kernels nothing has launched. To be called
    once in a process.
    """
    from benchmarks.gpu.launches import launch_all

    driver = targets.install(target)
    import mobizo_kernels.triton as package

    failures = []
    try:
        launch_all()
    except Exception:
        failures.append(f"{target}: {traceback.format_exc()}")
    failures += [f"{target}: {error}" for error in driver.failures]
    return list(targets.compiled(package, target)), failures, targets.never_launched(package)


@triton.jit
def noise_alone(out, seed, stream, BLOCK: tl.constexpr, DISTRIBUTION: tl.constexpr):
    """Whole blocks of noise, float32, without the masks and the tail that an op has to have."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    z = noise_run(tl.load(seed), stream, first, BLOCK, 4, DISTRIBUTION)
    tl.store(out + first + tl.arange(0, BLOCK), z)


@triton.jit(do_not_specialize=["rows", "columns"])
def outer_alone(out, signs, rows, columns, BLOCK: tl.constexpr, RUN: tl.constexpr):
    """The same with directions "outer", whose signs are drawn, by runs of RUN neighbours."""
    first = tl.program_id(0).to(tl.int64) * BLOCK
    row, column = places_of_signs(first, rows, columns, BLOCK, RUN)
    tl.store(out + first + tl.arange(0, BLOCK), outer_run(signs, row, column, BLOCK, RUN))


def noise_cost(target: str) -> dict[str, float]:
    """Instructions per value of noise, by distribution. To be called once in a process."""
    warp_size = targets.install(target).get_current_target().warp_size
    costs = {}
    for distribution in DISTRIBUTIONS:
        instructions = []
        for block in BLOCKS:
            out, options = torch.empty(block), {"num_warps": WARPS, "enable_fp_fusion": False}
            if distribution == "outer":
                signs = torch.empty(block, dtype=torch.int32)
                binary = outer_alone[(1,)](out, signs, 64, 64, block, 4, **options)
            else:
                binary = noise_alone[(1,)](out, torch.tensor(1), 2, block, distribution, **options)
            instructions.append(targets.cost(binary)[0])
        more = (instructions[1] - instructions[0]) * WARPS * warp_size
        costs[distribution] = more / (BLOCKS[1] - BLOCKS[0])
    return costs


def faults(kernels: list[Kernel]) -> list[str]:
    """What no kernel may do."""
    found = []
    for kernel in kernels:
        limit = DEVICES[kernel.target].shared_memory
        if kernel.spills:
            found.append(f"{kernel.described()} spills registers ({kernel.spills})")
        if kernel.shared > limit:
            found.append(f"{kernel.described()} needs {kernel.shared} bytes of shared memory, {limit} exist")
    return found


def table(kernels: list[Kernel], costs: dict[str, dict[str, float]]) -> str:
    """Markdown, with a column for each target of `costs`."""
    groups: dict[tuple[str, str, str], list[Kernel]] = {}
    for kernel in kernels:
        distribution = str(kernel.constants.get("DISTRIBUTION", "-"))
        groups.setdefault((kernel.name, kernel.dtype, distribution), []).append(kernel)
    rows = [["kernel", "dtype", "distribution", *costs], ["---"] * (3 + len(costs))]
    for names, alike in groups.items():
        rows.append([*names, *(_shown([k for k in alike if k.target == target]) for target in costs)])
    for name in DISTRIBUTIONS:
        per_value = [f"{cost[name]:.1f} a value" for cost in costs.values()]
        rows.append(["noise alone", "fp32", name, *per_value])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _shown(alike: list[Kernel]) -> str:
    """instructions / registers / shared memory, or - where the target does not take the kernel."""
    if not alike:
        return "-"
    measures = ("instructions", "registers", "shared")
    return " / ".join(_span([getattr(kernel, measure) for kernel in alike]) for measure in measures)


def _span(values: list[int]) -> str:
    """Least and most."""
    low, high = min(values), max(values)
    return str(low) if low == high else f"{low}-{high}"


def put_into(path: Path, text: str) -> None:
    """Replace what stands between the markers of a file."""
    parts = path.read_text().split(MARKER)
    if len(parts) != 3:
        raise SystemExit(f"benchmarks.gpu: {path} must hold the marker {MARKER} twice")
    path.write_text(f"{parts[0]}{MARKER}\n{text}\n{MARKER}{parts[2]}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--targets", nargs="+", choices=list(DEVICES), default=list(DEVICES), metavar="TARGET"
    )
    parser.add_argument("--jobs", type=count, default=os.cpu_count(), help="processes at a time")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every kernel to FILE")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="put the table between the markers of FILE")
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    with context.Pool(min(options.jobs, len(options.targets)), maxtasksperchild=1) as pool:
        results = pool.map(compile_all, options.targets, chunksize=1)
        costs = dict(zip(options.targets, pool.map(noise_cost, options.targets, chunksize=1), strict=True))
    kernels = [kernel for compiled, _, _ in results for kernel in compiled]
    wrong = [failure for _, failures, _ in results for failure in failures] + faults(kernels)
    if set(options.targets) == set(DEVICES):
        unused = set.intersection(*(unlaunched for _, _, unlaunched in results))
        wrong += [f"{name} was launched for no target" for name in sorted(unused)]
    print(f"triton {version('triton')}: {len(kernels)} kernels compiled\n")
    print(text := table(kernels, costs))
    if options.docs:
        put_into(options.docs, text)
    if options.json:
        content = {"triton": version("triton"), "noise": costs, "kernels": [asdict(k) for k in kernels]}
        options.json.write_text(json.dumps(content, indent=2) + "\n")
    if wrong:
        raise SystemExit("benchmarks.gpu:\n" + "\n".join(wrong))


if __name__ == "__main__":
    main()
