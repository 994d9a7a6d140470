"""What a program writes beside ExecuTorch's own Llama recipe with its LLM runner: tokens a second, memory.

    mobizo export --out program.pte --context 512
    python -m benchmarks.executorch.llama_runner program.pte [--recipe FILE.pte] [--processor-time]

The recipe's program is of the same model, quantization and context. It is made first, which takes minutes,
and kept where --recipe says. Both go on with the same texts, greedily, in turns, and have to write the same
where weights are float32. Both use the same library of XNNPACK's kernels.

Columns: tokens of the prompt; tokens/s of the prompt (prefill) and of what follows (decode), and the medians
of their ratios turn by turn, ours through the recipe's. The last lines are memory: peaks of fresh processes
(VmHWM) beyond what they had with their libraries loaded, of one that writes, and of one that makes a step
before it writes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import executorch.kernels.quantized  # noqa: F401
import numpy as np
from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401
from executorch.extension.llm.runner import GenerationConfig, Stats, TextLLMRunner
from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

from benchmarks.executorch.generation import QUESTIONS
from benchmarks.executorch.llama_recipe import OPTIONS, export_recipe
from benchmarks.executorch.recipe import directions
from benchmarks.harness import Report, Timing, count, parser
from mobizo_kernels.cli.memory import peak_rss_mb, reset_peak_rss
from mobizo_kernels.cli.processes import in_fresh_process
from mobizo_kernels.data import tokenizer_definition
from mobizo_kernels.executorch import Trainer, read_description
from mobizo_kernels.models import SMOLLM2, load_model, load_tokenizer

LENGTHS = (32, 128, 384)
Clock = Callable[[], float]


@dataclass(frozen=True)
class Written:
    """What was written behind a prompt, and the seconds of the prompt and of each token after the first."""

    text: str
    prompt: int
    prefill: float
    token: float


class Ours:
    """A program of this package.

    Args:
        program: its path.
        tokenizer: path of a tokenizer.json.
        threads: of the native trainer.
    """

    def __init__(self, program: str, tokenizer: str, threads: int) -> None:
        from tokenizers import Tokenizer

        self._trainer = Trainer(program, threads=threads)
        self._tokenizer = Tokenizer.from_file(tokenizer)

    def write(self, text: str, most: int, clock: Clock) -> Written:
        """At most so many tokens behind a text."""
        prompt: list[int] = self._tokenizer.encode(text).ids
        times: list[float] = []
        self._trainer.generate([prompt[0] ^ 1], max_new_tokens=1)  # nothing of the prompt is kept
        begun = clock()
        found = self._trainer.generate(
            prompt, max_new_tokens=most, on_token=lambda token: times.append(clock())
        )
        return _written(self._tokenizer.decode(found.tokens), len(prompt), begun, times)

    def step(self) -> None:
        """Make a step on made-up rows of the longest kind."""
        d = self._trainer.description
        shape = (d.batch_size, d.max_length)
        tokens, mask = np.ones(shape, np.int64), np.ones(shape, np.int64)
        positions = np.full((d.batch_size, d.targets_per_row), d.max_length - 1)
        words = np.full_like(positions, (d.candidate_tokens or (1,))[0])
        inputs: list[Any] = [tokens, mask, positions, words, *directions(d.queries)]
        self._trainer.train_step(*inputs)


@contextmanager
def silent() -> Iterator[None]:
    """The runner prints what it writes, and how long it took."""
    sys.stdout.flush()
    kept = os.dup(1), os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        for stream in (1, 2):
            os.dup2(nowhere.fileno(), stream)
    try:
        yield
    finally:
        for stream, before in zip((1, 2), kept, strict=True):
            os.dup2(before, stream)
            os.close(before)


class Recipes:
    """The same of the recipe's program."""

    def __init__(self, program: str, tokenizer: str, threads: int) -> None:
        _unsafe_reset_threadpool(threads)
        with silent():
            self._runner = TextLLMRunner(program, tokenizer)

    def write(self, text: str, most: int, clock: Clock) -> Written:
        """At most so many tokens behind a text."""
        config = GenerationConfig(echo=False, max_new_tokens=most, temperature=0.0)
        pieces: list[str] = []
        times: list[float] = []
        stats: list[Stats] = []

        def on_token(piece: str) -> None:
            times.append(clock())
            pieces.append(piece)

        self._runner.reset()
        with silent():
            begun = clock()
            self._runner.generate(text, config, on_token, stats.append)
        return _written("".join(pieces), stats[-1].num_prompt_tokens, begun, times)


def _written(text: str, prompt: int, begun: float, times: list[float]) -> Written:
    if len(times) < 2:
        raise SystemExit("benchmarks.executorch.llama_runner: a text ended after one token")
    return Written(text, prompt, times[0] - begun, (times[-1] - times[0]) / (len(times) - 1))


def peak(kind: str, program: str, tokenizer: str, text: str, threads: int) -> float:
    """MB that a fresh process takes to write: of `Recipes`, of `Ours`, or of "stepped", which steps first."""
    reset_peak_rss()
    before = peak_rss_mb()
    writer: Any = (Recipes if kind == "recipe" else Ours)(program, tokenizer, threads)
    if kind == "stepped":
        writer.step()
    writer.write(text, 32, time.perf_counter)
    return peak_rss_mb() - before


def main() -> None:
    options = _options()
    description = read_description(options.program)
    assert description.generation is not None, "the program was exported without a context"
    options.quantization, options.context = description.quantization, description.generation.context
    if options.quantization not in OPTIONS:
        raise SystemExit(f"the recipe has no quantization {options.quantization!r}, only {list(OPTIONS)}")
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(options.recipe or Path(folder, "recipe.pte"))
        if not recipe.is_file():
            model, own = load_model(options.model, "float32")
            export_recipe(model, own, recipe, context=options.context, quantization=options.quantization)
            del model
        tokenizer = Path(folder, "tokenizer.json")
        tokenizer.write_text(tokenizer_definition(load_tokenizer(options.model)), encoding="utf-8")
        compare(options, str(recipe), str(tokenizer))


def compare(options: argparse.Namespace, recipe: str, tokenizer: str) -> None:
    """Measure and print."""
    clock = time.process_time if options.processor_time else time.perf_counter
    report = Report("llama_runner", options)
    ours = Ours(options.program, tokenizer, options.threads)
    theirs = Recipes(recipe, tokenizer, options.threads)
    rounds, lengths, tokens = (2, LENGTHS[:1], 8) if options.quick else (options.rounds, LENGTHS, 48)
    for length in lengths:
        text = text_of(length, tokenizer)
        found: dict[str, list[Written]] = {"ours": [], "recipe": []}
        for turn in range(rounds + 1):
            both: list[tuple[str, Ours | Recipes]] = [("ours", ours), ("recipe", theirs)]
            if turn % 2:
                both.reverse()
            for name, writer in both:
                written = writer.write(text, tokens, clock)
                if turn:  # the first packs weights and maps pages
                    found[name].append(written)
        pairs = list(zip(found["ours"], found["recipe"], strict=True))
        if pairs[0][0].prompt != pairs[0][1].prompt:
            raise SystemExit(f"{pairs[0][0].prompt} and {pairs[0][1].prompt} tokens of one text")
        if options.quantization == "none" and pairs[0][0].text != pairs[0][1].text:
            raise SystemExit(f"they write {pairs[0][0].text!r} and {pairs[0][1].text!r}")
        timings, results = {}, {}
        for name, all_of_it in found.items():
            timings[f"{name} prefill"] = Timing.of([w.prefill / w.prompt for w in all_of_it])
            timings[f"{name} decode"] = Timing.of([w.token for w in all_of_it])
        for name in ("prefill", "decode"):
            for who in found:
                results[f"{who} {name}/s"] = 1 / timings[f"{who} {name}"].p50
        results["prefill ratio"] = statistics.median(b.prefill / a.prefill for a, b in pairs)
        results["decode ratio"] = statistics.median(b.token / a.token for a, b in pairs)
        report.add({"prompt": pairs[0][0].prompt}, timings, results)
    text = text_of(LENGTHS[0], tokenizer)
    paths = {"recipe": recipe, "ours": options.program, "stepped": options.program}
    megabytes = {
        kind: in_fresh_process(peak, kind, path, tokenizer, text, options.threads)
        for kind, path in paths.items()
    }
    base = megabytes["recipe"]
    sizes = ", ".join(f"{kind} {value:.0f} ({value / base:.2f})" for kind, value in megabytes.items())
    bytes_of = ", ".join(f"{kind} {os.path.getsize(paths[kind]) / 1e6:.0f}" for kind in ("recipe", "ours"))
    print(f"\nMB to write: {sizes}; files: {bytes_of}")
    report.finish()


def text_of(length: int, tokenizer: str) -> str:
    """A text of so many tokens."""
    from tokenizers import Tokenizer

    own = Tokenizer.from_file(tokenizer)
    text = " ".join(QUESTIONS * 4)
    encoded = own.encode(text)
    return text[: encoded.offsets[length - 1][1]]


def _options() -> argparse.Namespace:
    result = parser(__doc__)
    result.add_argument("program", help="of mobizo export, with a context")
    result.add_argument("--model", default=SMOLLM2, help="of the program: a Llama")
    result.add_argument("--recipe", help="FILE.pte of the recipe, made if it is not there")
    result.add_argument("--rounds", type=count, default=9, help="turns, each of all lengths")
    result.add_argument(
        "--processor-time",
        action="store_true",
        help="of both: for a machine with other work",
    )
    result.set_defaults(threads=1)
    return result.parse_args()


if __name__ == "__main__":
    main()
