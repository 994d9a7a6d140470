"""Is the noise random? Three looks, one table each; the exit code is 1 if any of them says no.

    python -m benchmarks.statistics [--json FILE] [--quick] [--orders ORDER ...]

1. Names: two parameters of a model that had one stream would share their noise.
2. Values: the kernels' own, tested for their law and for correlations. The smallest p-value is compared with
   what the smallest of so many is.
3. Words: those that the values are made of, through dieharder in five orders, as many at a time as there are
   cores. This takes hours; `--orders` without a name leaves it out.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from benchmarks import harness
from benchmarks.statistics import battery, dieharder, names, words

# A run of right values stays above it 9,999 times in 10,000.
_SURPRISE = 1e-4
_RUN_SEED = 1


def main() -> int:
    parser = harness.parser(__doc__)
    parser.add_argument(
        "--orders",
        nargs="*",
        choices=words.ORDERS,
        default=list(words.ORDERS),
        metavar="ORDER",
        help=f"of words for dieharder: {', '.join(words.ORDERS)}; all by default, none without a name",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {"machine": harness.machine(), "quick": options.quick}

    counts, shared = names.collisions()
    print(f"names: {sum(counts.values())} of {len(counts)} families, {len(shared)} streams shared")
    result["names"] = {"parameters": counts, "shared": shared}

    verdicts = []
    for verdict in _verdicts(quick=options.quick):
        verdicts.append(verdict)
        print(f"{verdict.name:40}  {verdict.statistic:52}  p = {verdict.p_value:.4f}", flush=True)
    least = min(verdict.p_value for verdict in verdicts)
    surprise = 1 - (1 - least) ** len(verdicts)  # how often the smallest of so many is as small
    print(
        f"values: {len(verdicts)} tests, smallest p {least:.2e}; as small in {100 * surprise:.2g} % of runs"
    )
    result["values"] = {"verdicts": [asdict(verdict) for verdict in verdicts], "surprise": surprise}

    outcomes = []
    if options.orders:
        test = partial(
            dieharder.run, words.checked_program(), run_seed=_RUN_SEED, test=0 if options.quick else None
        )
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for outcome in pool.map(test, options.orders):
                outcomes.append(outcome)
                print(
                    f"words, {outcome.order}: {outcome.passed} passed, {len(outcome.weak)} weak, "
                    f"{len(outcome.failed)} failed {[*outcome.weak, *outcome.failed] or ''}",
                    flush=True,
                )
    result["words"] = [asdict(outcome) for outcome in outcomes]

    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    wrong = bool(shared) or surprise < _SURPRISE or any(outcome.failed for outcome in outcomes)
    return 1 if wrong else 0


def _verdicts(*, quick: bool) -> Iterator[battery.Verdict]:
    sample, count = battery.kernel_noise, 1_000_000 if quick else 100_000_000
    vectors, size = (100, 4096) if quick else (565, 65536)
    yield from battery.gaussian(sample, count)
    yield from battery.rademacher(sample, count)
    for distribution in ("gaussian", "rademacher"):
        yield battery.lags(sample, count, distribution)
        yield from battery.correlations(sample, vectors, size, distribution)


if __name__ == "__main__":
    sys.exit(main())
