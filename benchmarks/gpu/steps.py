"""A whole step on a GPU: ours and the peers', and the bare forward, on models of random weights.

What a step is, is written in benchmarks/steps.py. Each runs as it is, kernel by kernel, and with its forward
as a CUDA graph (ours with the whole step in it), for else what is timed on a small model is Python as it
launches kernels; and some with their decoder compiled by torch. Ratios are of the fastest form.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks.gpu import predictions, roofline
from benchmarks.gpu.models import SIZES, SMALL, bases, random_model
from benchmarks.gpu.report import GpuReport
from benchmarks.gpu.timing import captured, time_steps
from benchmarks.harness import Timing
from benchmarks.steps import STEPS, Step, StepSettings
from mobizo_kernels.zo.graphed import one_text_per_row

EFFECTIVE = 16  # E = q B, the sequences that each sign is tried on
PEERS = ("sequential MeZO", "stacked P-RGE", "first order", "first order, checkpointed")
SHARING = ("ours, upper half", "ours, 2 tokens", "ours, 2 tokens, upper half")
FULL_PARAMETERS = ("all parameters, ours", "all parameters, MeZO")
GRAPHED = ("bare forward", "stacked P-RGE", "sequential MeZO")  # beside ours
PLAIN, GRAPH, COMPILE = "kernel by kernel", "graph", "compiled"
COLUMNS = {"ms": PLAIN, "ms as a graph": GRAPH, "ms compiled": COMPILE}
PEAKS = {"MB": PLAIN, "MB as a graph": GRAPH, "MB compiled": COMPILE}


@dataclass(frozen=True)
class GpuStepSettings(StepSettings):
    """A step on `device`, with batches that come from `source`; `form` is one of `PLAIN`, `GRAPH`, `COMPILE`,
    `base` a key of :func:`bases` or "".
    """

    device: torch.device
    source: torch.device
    sizes: dict[str, int]
    base: str = ""
    form: str = PLAIN

    def load(self) -> PreTrainedModel:
        model = random_model(self.sizes, getattr(torch, self.dtype), self.device)
        if self.base:
            bases()[self.base](model)
        if self.form == COMPILE:
            backend = "inductor" if self.device.type == "cuda" else "eager"
            model.model = torch.compile(model.model, backend=backend, dynamic=False)
        elif self.form == GRAPH:
            model.forward = CapturedForward(model)
        return model

    def tokens(self) -> torch.Tensor:
        random = torch.Generator().manual_seed(0)
        high = self.sizes["vocab_size"]
        return torch.randint(3, high, (self.batch_size, self.length + 1), generator=random).to(self.source)


class CapturedForward:
    """The forward of a model for token ids of one shape without padding, as a CUDA graph."""

    def __init__(self, model: nn.Module) -> None:
        self._forward = model.forward
        self._replay: Callable[[], None] | None = None

    def __call__(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any) -> Any:
        if self._replay is None:
            self._tokens = input_ids.clone()
            with one_text_per_row():
                self._replay = captured(partial(self._run, options))
        self._tokens.copy_(input_ids)
        self._replay()
        return self._output

    def _run(self, options: dict[str, Any]) -> None:
        self._output = self._forward(input_ids=self._tokens, **options)


@dataclass(frozen=True)
class Case:
    """A model, q and T, and the base's type, "" for that of the weights."""

    model: str = "TinyLlama-1.1B"
    queries: int = 4
    length: int = 128
    base: str = ""


SMALL_MODEL, LARGE_MODEL = Case(), Case("Llama-2-7B")
OTHER_SETTINGS = [Case(queries=q, length=t) for q, t in ((4, 64), (4, 256), (1, 128), (16, 128))]


class WholeSteps:
    """Table `step`: random weights, rank 16 on q and v, or all parameters.

    Args:
        report: that gets the table.
        device: to run on; without a GPU the model is tiny.
        quick: few layers and few repetitions.
    """

    def __init__(self, report: GpuReport, device: torch.device, quick: bool) -> None:
        self._report, self._device, self._quick = report, device, quick
        self._measured: dict[Case, dict[str, dict[str, tuple[Timing, float]]]] = {}

    def measure(self, case: Case, names: Sequence[str], forms: Sequence[str] = (PLAIN, GRAPH)) -> None:
        """Time the steps `names`, of `STEPS`, each in those of the `forms` that it has."""
        for name, form in product(names, forms):
            if form in _forms(name, case, self._device):
                settings = replace(self.settings(case), form=form)
                measured = _measured(name, settings, 0.05 if self._quick else 1.0)
                if measured is not None:
                    steps = self._measured.setdefault(case, {})
                    steps.setdefault(name, {})[form] = measured
                    self._tell(case)

    def settings(self, case: Case) -> GpuStepSettings:
        """What a step of `case` is here."""
        on_gpu = self._device.type == "cuda"
        sizes = SIZES[case.model] if on_gpu else SMALL
        if self._quick and on_gpu:
            sizes = sizes | {"num_hidden_layers": 4}
        return GpuStepSettings(
            model=case.model,
            dtype="bfloat16" if on_gpu else "float32",
            queries=case.queries,
            batch_size=EFFECTIVE // case.queries,
            length=case.length if on_gpu else 4,
            rank=16,
            targets=["q_proj", "v_proj"],
            device=self._device,
            source=self._device,
            sizes=sizes,
            base=case.base,
        )

    def _tell(self, case: Case) -> None:
        """Make the rows of a case anew: what was measured last may be the faster form of the bare forward."""
        caption = "ms; peak memory in MB; both relative to the bare forward of the same rows"
        table, settings = self._report.table("step", caption), self.settings(case)
        steps = self._measured[case]
        best = {name: min(timing.p50 for timing, _ in forms.values()) for name, forms in steps.items()}
        peaks = {name: min(peak for _, peak in forms.values()) for name, forms in steps.items()}
        base = case.base or settings.dtype
        for name, forms in steps.items():
            times = {column: forms[form][0].show(1e3) for column, form in COLUMNS.items() if form in forms}
            memory = {column: f"{forms[form][1]:.0f}" for column, form in PEAKS.items() if form in forms}
            table.add(
                {
                    "model": case.model, "base": base, "q": case.queries,
                    "T": settings.length, "rows": 2 * EFFECTIVE, "step": name,
                },
                {form: timing for form, (timing, _) in forms.items()},
                {
                    **{column: times.get(column, "-") for column in COLUMNS},
                    "time / bare": _ratio(best, name, "bare forward") or "-",
                    **{column: memory.get(column, "-") for column in PEAKS},
                    "peak / bare": _ratio(peaks, name, "bare forward") or "-",
                },
            )  # fmt: skip
        _goals(self._report, f"({case.model}, {base}, q={case.queries}, T={settings.length})", best, peaks)
        for work in roofline.steps(case.length) if case.queries == 4 and not case.base else ():
            name, _, what = work.name.partition(" (")
            if what.startswith(case.model) and name in best:
                predictions.compare(self._report, work, best[name])


def _goals(report: GpuReport, case: str, best: dict[str, float], peaks: dict[str, float]) -> None:
    wanted: list[tuple[str, float | None, dict[str, float]]] = [
        ("step / bare forward", _ratio(best, "ours", "bare forward"), {"below": 1.05}),
        ("MeZO / step", _ratio(best, "sequential MeZO", "ours"), {"at_least": 4.3}),
        ("P-RGE / step", _ratio(best, "stacked P-RGE", "ours"), {"at_least": 1.3}),
        ("peak memory / inference", _ratio(peaks, "ours", "bare forward"), {"below": 1.02}),
        ("upper half / bare forward", _ratio(best, "ours, upper half", "bare forward"), {"below": 0.62}),
    ]
    for name, figure, goal in wanted:
        if figure is not None:
            report.goal(f"{name} {case}", figure, **goal)


def _ratio(figures: dict[str, float], name: str, other: str) -> float | None:
    """None where one of them was not measured; memory is 0 without a GPU."""
    return figures[name] / figures[other] if figures.get(name) and figures.get(other) else None


def _forms(name: str, case: Case, device: torch.device) -> list[str]:
    """The forms in which a step is timed; graphs need a GPU."""
    graph = device.type == "cuda" and (name.startswith("ours") or name in GRAPHED) and not case.base
    return [PLAIN, *[GRAPH] * graph, COMPILE]


def _measured(name: str, settings: GpuStepSettings, seconds: float) -> tuple[Timing, float] | None:
    """Time of a step, and the peak of allocated memory in MB (10^6 bytes; 0 without a GPU); None if the step
    cannot be made here, which is said: the other figures are not to be lost.
    """
    try:
        return _timed(_made(name, settings), settings.device, seconds)
    except Exception as error:  # out of memory, a library that does not load, not to be captured or compiled
        first_line = (str(error).splitlines() or [""])[0]
        print(f"{name}, {settings.form}: {type(error).__name__}: {first_line}", flush=True)
        return None
    finally:
        torch.compiler.reset()
        gc.collect()
        if settings.device.type == "cuda":
            torch.cuda.empty_cache()


def _made(name: str, settings: GpuStepSettings) -> Step:
    if not name.startswith("ours"):
        return STEPS[name](settings)
    # Its graph holds the whole step; it alone takes batches as a loader gives them.
    graph = settings.form == GRAPH
    own = replace(settings, source=torch.device("cpu"), form=PLAIN if graph else settings.form)
    return partial(STEPS[name], cuda_graph=graph)(own)


def _timed(step: Step, device: torch.device, seconds: float) -> tuple[Timing, float]:
    on_gpu = device.type == "cuda"
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(3):  # compiles, tunes, captures
        step()
    peak = torch.cuda.max_memory_allocated(device) / 1e6 if on_gpu else 0.0
    return time_steps(step, device, seconds), peak
