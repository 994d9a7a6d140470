"""The native tokenizer against the library `tokenizers`, both on one thread, with the tokenizer of SmolLM2.

    python -m benchmarks.executorch.tokenizer [--texts N] [--json FILE]

Texts are those of the training rows of the named tasks whose packages are installed, N of each. Ids and
decoded texts are compared before anything is timed. The library keeps the tokens of words that it has met,
and finds most words there.

Columns: texts; MB of UTF-8 (10^6 bytes); MB/s of ours, by the processor time of one thread; how many times
faster than the library. Goal: at least a fifth of its speed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from time import process_time
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"

from benchmarks.harness import Report, count, parser, time_variants  # noqa: E402
from mobizo_kernels.data import TASKS, load_splits  # noqa: E402
from mobizo_kernels.errors import InputError  # noqa: E402
from mobizo_kernels.executorch import _trainer  # noqa: E402
from mobizo_kernels.models import load_tokenizer  # noqa: E402

MB = 1e6


def options() -> argparse.Namespace:
    result = parser(__doc__)
    result.add_argument("--texts", type=count, default=2000, help="of each task, at most")
    return result.parse_args()


def texts_of(task: str, most: int) -> list[str]:
    """Texts spread over the training rows; [] if the package of the task is not installed."""
    try:
        rows = load_splits(task).train
    except InputError:
        return []
    return [rows[i].text for i in range(0, len(rows), max(1, len(rows) // most))][:most]


def compare(
    report: Report, rounds: int, case: dict[str, str], texts: list[str], work: dict[str, Any]
) -> None:
    """Add one row: `work` is done by ours and by the library."""
    size = sum(len(text.encode()) for text in texts)
    timings = time_variants(work, rounds, clock=process_time)
    report.add(
        {**case, "texts": len(texts), "MB": size / MB},
        timings,
        {
            "MB/s": size / MB / timings["ours"].p50,
            "x library": timings["library"].p50 / timings["ours"].p50,
        },
    )


def each(function: Callable[..., object], items: list[Any]) -> Callable[[], list[object]]:
    return lambda: [function(item) for item in items]


def main() -> None:
    chosen = options()
    chosen.library = version("tokenizers")
    report = Report("tokenizer", chosen)
    most, rounds = (50, 2) if chosen.quick else (chosen.texts, 7)
    library = load_tokenizer("smollm2").backend_tokenizer
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        library.save(str(path))
        ours = _trainer.NativeTokenizer(path)
    for task in TASKS:
        texts = texts_of(task, most)
        if not texts:
            print(f"{task}: its package is not installed")
            continue
        ids = [library.encode(text).ids for text in texts]
        if [ours.encode(text).tolist() for text in texts] != ids:
            raise SystemExit(f"{task}: other ids")
        if list(map(ours.decode, ids)) != list(map(library.decode, ids)):
            raise SystemExit(f"{task}: other texts")
        encode = {"ours": each(ours.encode, texts), "library": each(library.encode, texts)}
        decode = {"ours": each(ours.decode, ids), "library": each(library.decode, ids)}
        compare(report, rounds, {"task": task, "work": "encode"}, texts, encode)
        compare(report, rounds, {"task": task, "work": "decode"}, texts, decode)
    report.finish()


if __name__ == "__main__":
    main()
