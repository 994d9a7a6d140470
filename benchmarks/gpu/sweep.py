"""Which tiles are fastest on this GPU: every kernel in many configurations, beside that which is launched.

    python -m benchmarks.gpu.sweep [--only KERNEL ...] [--seconds N] [--json FILE]

The kernels' tiles are chosen from shapes by rules, never by a timing (mobizo_kernels/triton); this says how
far those rules are from the best configuration, and whose turn it is to change. Configurations are compiled
by all cores first, for at most half of `--seconds`; what was not compiled in time is not timed. Times are of
CUDA graph replays on operands that rotate through more memory than the last-level cache holds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import torch
import triton
import triton.language as tl

from benchmarks.gpu.timing import Stopwatch
from benchmarks.harness import Variant, parser
from mobizo_kernels.ops.checks import DISTRIBUTIONS
from mobizo_kernels.triton import shrink_expand
from mobizo_kernels.triton.perturb import perturb_step
from mobizo_kernels.triton.signs import draw_signs
from mobizo_kernels.triton.tensors import noise_launch
from mobizo_kernels.triton.update import update_kernel

RANK, ROWS, GROUPS, MATRIX = 16, 4096, 8, (1 << 14, 1 << 12)
SHAPES = ((2048, 2048), (2048, 256), (4096, 4096))  # in and out features
DTYPES = (torch.float32, torch.bfloat16)

Configuration = tuple[int, ...]
Operands = tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Sweep:
    """One kernel on one set of operands.

    Attributes:
        name: of kernel and case.
        operands: makes a set of them on a device.
        launch: the kernel on operands in a configuration.
        configurations: to try.
        chosen: that which the package launches.
    """

    name: str
    operands: Callable[[torch.device], Operands]
    launch: Callable[[Operands, Configuration], object]
    configurations: tuple[Configuration, ...]
    chosen: Configuration


def perturbations() -> Iterator[Sweep]:
    """(block, warps, neighbours of a thread) of perturb_'s kernel, one seed."""
    for dtype, distribution in product(DTYPES, DISTRIBUTIONS):
        some = noise_launch([torch.empty(0, dtype=dtype)], distribution)
        vectors = (some["VECTOR"],) if distribution == "rademacher" else (4, 8)
        least = 8 if distribution == "rademacher" else 4
        tried = tuple(
            (32 * warps * values, warps, vector)
            for values, warps, vector in product((4, 8, 16, 32), (1, 2, 4, 8), vectors)
            if values >= max(vector, least) and 256 <= 32 * warps * values <= 8192
        )
        yield Sweep(
            f"perturb_kernel, {dtype}, {distribution}".replace("torch.", ""),
            partial(_parameter, dtype),
            partial(_perturb, distribution),
            tried,
            (some["BLOCK"], some["num_warps"], some["VECTOR"]),
        )


def _parameter(dtype: torch.dtype, device: torch.device) -> Operands:
    """A matrix, a seed, its coefficient, and the signs of a direction "outer"."""
    seeds = torch.ones(1, dtype=torch.int64, device=device)
    return (
        torch.zeros(MATRIX, dtype=dtype, device=device),
        seeds,
        torch.full((1,), 1e-6, device=device),
        draw_signs(seeds, 5, *MATRIX),
    )


def _perturb(distribution: str, operands: Operands, configuration: Configuration) -> None:
    param, seeds, coeffs, signs = operands
    block, warps, vector = configuration
    update_kernel[(triton.cdiv(param.numel(), block),)](
        (param,), param.numel(), None, seeds, coeffs, 1, 5, signs, *MATRIX, (1.0,), perturb_step,
        BLOCK=block, VECTOR=vector, RUN=vector, DISTRIBUTION=distribution, num_warps=warps,
        enable_fp_fusion=False,
    )  # fmt: skip


def adapters() -> Iterator[Sweep]:
    """(rows, columns, warps, stages, parts) of the two kernels of `mp_lora_`, bfloat16, two-sided."""
    for in_features, out_features in SHAPES:
        block_rows, block_in, splits, *_ = shrink_expand.shrink_tiles(ROWS, in_features, RANK, False)
        yield Sweep(
            f"shrink_kernel, {ROWS} x {in_features}",
            partial(_inputs, in_features),
            _shrink,
            tuple(
                (rows, columns, warps, stages, parts)
                for rows, columns, warps, stages, parts in product(
                    (32, 64, 128), (64, 128, 256), (2, 4, 8), (3, 4), (1, 2, 4)
                )
                if rows * columns <= 16384 and (warps < 8 or rows >= 64)
            ),
            (block_rows, block_in, 4, 3, splits),
        )
        rows_of_group = ROWS // GROUPS
        tiles = shrink_expand.expand_tiles(rows_of_group, GROUPS, out_features, RANK)
        yield Sweep(
            f"expand_kernel, {ROWS} x {out_features}, {splits} splits",
            partial(_outputs, out_features, splits),
            _expand,
            tuple(
                (rows, columns, warps, stages, parts)
                for rows, columns, warps, stages, parts in product(
                    (32, 64, 128), (32, 64, 128), (2, 4, 8), (1, 2, 3), (1, 2, 4, 8)
                )
                if 256 <= rows * columns // warps <= 4096 and rows * parts <= rows_of_group
            ),
            (*tiles[:2], 4, tiles[4], tiles[2]),
        )


def _inputs(in_features: int, device: torch.device) -> Operands:
    x = torch.randn(ROWS, in_features, dtype=torch.bfloat16, device=device)
    return x, torch.randn(RANK, in_features, device=device)


def _shrink(operands: Operands, configuration: Configuration) -> None:
    x, lora_a = operands
    rows, columns, warps, stages, splits = configuration
    shrunk = x.new_empty((splits, ROWS, RANK), dtype=torch.float32)
    shrink_expand.shrink_kernel[(triton.cdiv(ROWS, rows), splits)](
        x, lora_a, shrunk, None, None, ROWS, x.shape[1], x.shape[1], 0, 0, 0, RANK, splits, rows, columns,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip


def _outputs(out_features: int, splits: int, device: torch.device) -> Operands:
    return (
        torch.randn(ROWS, out_features, dtype=torch.bfloat16, device=device),
        torch.randn(splits, ROWS, RANK, device=device),
        torch.randn(out_features, RANK, device=device),
        torch.arange(GROUPS // 2, device=device).repeat(2),
        torch.full((GROUPS,), 1e-2, device=device),
    )


def _expand(operands: Operands, configuration: Configuration) -> None:
    base, shrunk, lora_b, seeds, coeffs = operands
    rows, columns, warps, stages, parts = configuration
    out_features = base.shape[1]
    programs = triton.cdiv(out_features, columns) * (GROUPS // 2) * parts
    shrink_expand.expand_kernel[(programs,)](
        base, shrunk, lora_b, seeds, coeffs, base, ROWS // GROUPS, out_features, GROUPS, parts,
        out_features, out_features, 2.0, 5, RANK, shrunk.shape[0], "gaussian", tl.int32, rows, columns,
        num_warps=warps, num_stages=stages,
    )  # fmt: skip


SWEEPS = {"perturb": perturbations, "adapters": adapters}


def _compiled(job: tuple[str, int, Configuration]) -> tuple[tuple[str, int, Configuration], str | None]:
    """Compile one configuration into Triton's cache; what is wrong with it, if anything."""
    name, index, configuration = job
    sweep = list(SWEEPS[name]())[index]
    try:
        sweep.launch(sweep.operands(torch.device("cuda")), configuration)
        torch.cuda.synchronize()
    except Exception as error:  # too much shared memory, registers, or not to be compiled
        return job, f"{type(error).__name__}: {error}"
    return job, None


def main() -> None:
    options_parser = parser(__doc__)
    options_parser.add_argument("--only", nargs="+", choices=tuple(SWEEPS), default=list(SWEEPS))
    options_parser.add_argument("--seconds", type=float, default=120.0, help="to be done in")
    options = options_parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu: torch sees no CUDA or ROCm device, so nothing was measured")
    started = time.monotonic()
    sweeps = {(name, index): sweep for name in options.only for index, sweep in enumerate(SWEEPS[name]())}
    jobs = [
        (*key, tried)
        for key, sweep in sweeps.items()
        for tried in dict.fromkeys((sweep.chosen, *sweep.configurations))
    ]
    ready: dict[tuple[str, int], dict[Configuration, None]] = {key: {} for key in sweeps}
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        outcomes = pool.imap_unordered(_compiled, jobs)
        try:
            for _ in jobs:
                left = options.seconds / 2 - (time.monotonic() - started)
                (*key, tried), fault = outcomes.next(timeout=max(left, 0.1))
                if fault is None:
                    ready[key[0], key[1]][tried] = None
        except multiprocessing.TimeoutError:
            print("benchmarks.gpu: half the time is up, and not everything compiled")
    device, results = torch.device("cuda"), {}
    watch = Stopwatch(device, rounds=5, shortest=3e-4)
    for key, sweep in sweeps.items():
        if time.monotonic() - started > options.seconds:
            break
        first = sweep.operands(device)
        sets = [first] + [sweep.operands(device) for _ in range(watch.copies(first[0].nbytes) - 1)]
        calls: dict[str, list[Variant]] = {
            str(tried): [partial(sweep.launch, operands, tried) for operands in sets] for tried in ready[key]
        }
        timings = {name: timing.p50 for name, timing in watch.time(calls).items()}
        results[sweep.name] = {"chosen": str(sweep.chosen), "seconds": timings}
        print(_line(sweep, timings), flush=True)
        if options.json is not None:
            _write(options.json, results)


def _line(sweep: Sweep, timings: dict[str, float]) -> str:
    best = sorted(timings, key=timings.__getitem__)[:6]
    chosen = timings.get(str(sweep.chosen))
    told = "not compiled" if chosen is None else f"{1e6 * chosen:.1f} us"
    ranking = ", ".join(f"{name} {1e6 * timings[name]:.1f}" for name in best)
    return f"{sweep.name}: chosen {sweep.chosen} {told}; best: {ranking}"


def _write(path: Path, results: dict[str, Any]) -> None:
    device = torch.cuda.get_device_name()
    path.write_text(
        json.dumps({"benchmark": "gpu_sweep", "device": device, "kernels": results}, indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
