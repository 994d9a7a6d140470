"""A whole step on a GPU: ours and the peers', and the bare forward, on models of random weights.

What a step is, is written in benchmarks/steps.py. Each runs as it is, kernel by kernel, and with its forward
as a CUDA graph (ours with the whole step in it), for else what is timed on a small model is Python as it
launches kernels; and some with their decoder compiled by torch. Ratios are of the fastest form.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from benchmarks.gpu_models import SIZES, SMALL, bases, random_model
from benchmarks.gpu_report import GpuReport
from benchmarks.gpu_timing import captured, time_steps
from benchmarks.harness import Timing
from benchmarks.steps import STEPS, Step, StepSettings
from mobizo_kernels.zo.graphed import one_text_per_row

EFFECTIVE = 16  # E = q B, the sequences that each sign is tried on
ZEROTH_ORDER = ("bare forward", "ours", "stacked P-RGE", "sequential MeZO")
SHARING = ("ours, upper half", "ours, 2 tokens", "ours, 2 tokens, upper half")
FIRST_ORDER = ("first order", "first order, checkpointed")
FULL_PARAMETERS = ("all parameters, ours", "all parameters, MeZO")
GRAPHED = ("bare forward", "stacked P-RGE", "sequential MeZO")  # beside ours
COMPILED = ("bare forward", "ours", "first order")
PLAIN, GRAPH, COMPILE = "kernel by kernel", "graph", "compiled"


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
    """A model, q and T, the steps to time, and the base's type; `compiled` adds that form."""

    model: str
    queries: int
    length: int
    steps: tuple[str, ...]
    base: str = ""
    compiled: bool = False


def cases(quick: bool) -> list[Case]:
    """What is measured, the most telling first."""
    everything = (*ZEROTH_ORDER, *SHARING, *FIRST_ORDER, *FULL_PARAMETERS)
    small, large = "TinyLlama-1.1B", "Llama-2-7B"
    first = Case(small, 4, 128, everything, compiled=True)
    if quick:
        return [first, *(Case(small, 4, 128, ("bare forward", "ours"), base) for base in bases())]
    return [
        first,
        Case(large, 4, 128, (*ZEROTH_ORDER, *SHARING, *FIRST_ORDER)),
        *(Case(small, 4, 128, ("bare forward", "ours"), base) for base in bases()),
        *(
            Case(small, queries, length, ZEROTH_ORDER)
            for queries, length in ((4, 64), (4, 256), (1, 128), (16, 128))
        ),
    ]


@torch.no_grad()
def whole_steps(report: GpuReport, device: torch.device, quick: bool) -> None:
    """Table `step`: random weights, rank 16 on q and v, or all parameters."""
    report.table("step", "ms; peak memory in MB; both relative to the bare forward of the same rows")
    on_gpu = device.type == "cuda"
    for case in cases(quick):
        sizes = SIZES[case.model] if on_gpu else SMALL
        if quick and on_gpu:
            sizes = sizes | {"num_hidden_layers": 4}
        settings = GpuStepSettings(
            model=case.model,
            dtype="bfloat16" if on_gpu else "float32",
            queries=case.queries,
            batch_size=EFFECTIVE // case.queries,
            length=case.length if on_gpu else 4,
            rank=16,
            targets=["q_proj", "v_proj"],
            device=device,
            source=device,
            sizes=sizes,
            base=case.base,
        )
        _case(report, case, settings, 0.2 if quick else 1.0)


def _case(report: GpuReport, case: Case, settings: GpuStepSettings, seconds: float) -> None:
    """One row for each kind of step."""
    best: dict[str, float] = {}
    peaks: dict[str, float] = {}
    for name in case.steps:
        forms: dict[str, Timing] = {}
        for form in _forms(name, case, settings.device):
            measured = _measured(name, replace(settings, form=form), seconds)
            if measured is not None:
                forms[form], peak = measured
                peaks[name] = min(peak, peaks.get(name, peak))
        if forms:
            best[name] = min(timing.p50 for timing in forms.values())
        columns = {"ms": PLAIN, "ms as a graph": GRAPH, "ms compiled": COMPILE}
        report.add(
            {
                "model": case.model, "base": case.base or settings.dtype, "q": case.queries,
                "T": settings.length, "rows": 2 * EFFECTIVE, "step": name,
            },
            forms,
            {
                **{name: forms[form].show(1e3) if form in forms else "-" for name, form in columns.items()},
                "time / bare": _ratio(best, name, "bare forward") or "-",
                "peak MB": peaks.get(name, "-"),
                "peak / bare": _ratio(peaks, name, "bare forward") or "-",
            },
        )  # fmt: skip
    _goals(
        report,
        f"({case.model}, {case.base or settings.dtype}, q={case.queries}, T={settings.length})",
        best,
        peaks,
    )


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
    return [PLAIN, *[GRAPH] * graph, *[COMPILE] * (case.compiled and name in COMPILED)]


def _measured(name: str, settings: GpuStepSettings, seconds: float) -> tuple[Timing, float] | None:
    """Time of a step, and the peak of allocated memory in MB (10^6 bytes; 0 without a GPU); None if the step
    cannot be made here, which is said: the other figures are not to be lost.
    """
    try:
        return _timed(_made(name, settings), settings.device, seconds)
    except RuntimeError as error:  # out of memory, or not to be captured or compiled
        print(f"{name}, {settings.form}: {str(error).splitlines()[0]}", flush=True)
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
