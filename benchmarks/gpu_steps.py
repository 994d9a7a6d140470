"""A whole step on a GPU: ours, public P-RGE's and MeZO's, and the bare forward, on one random-weight model.

What a step is, is written in benchmarks/steps.py. Each runs twice: as it is, kernel by kernel, and with its
forward as a CUDA graph (ours with the whole step in it), for else what is timed on a small model is Python as
it launches kernels. Ratios are of the faster of the two forms.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.gpu_report import GpuReport
from benchmarks.gpu_timing import captured, time_steps
from benchmarks.harness import Timing
from benchmarks.steps import Step, StepSettings, bare_forward, ours, sequential_mezo, stacked_prge
from mobizo_kernels.zo.graphed import one_text_per_row

TINYLLAMA = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
}
EFFECTIVE = 16  # E = q B, the sequences that each sign is tried on

STEPS: dict[str, Callable[[StepSettings], Step]] = {
    "bare forward": bare_forward,
    "ours": ours,
    "stacked P-RGE": stacked_prge,
    "sequential MeZO": sequential_mezo,
}


@dataclass(frozen=True)
class GpuStepSettings(StepSettings):
    """A step on `device`, with batches that come from `source`; `graph` makes its forward a CUDA graph."""

    device: torch.device
    source: torch.device
    sizes: dict[str, int]
    graph: bool = False

    def load(self) -> PreTrainedModel:
        torch.manual_seed(0)
        config = LlamaConfig(**self.sizes, max_position_embeddings=2048, dtype=self.dtype)
        with self.device:
            model = LlamaForCausalLM(config).to(getattr(torch, self.dtype)).eval()
        if self.graph:
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


@torch.no_grad()
def whole_steps(report: GpuReport, device: torch.device, quick: bool) -> None:
    """Table `step`: TinyLlama's shape with random weights, rank 16 on q and v."""
    report.table("step", "ms; peak memory in MB; both relative to the bare forward of the same rows")
    on_gpu = device.type == "cuda"
    sizes, cases = dict(TINYLLAMA), [(4, 128), (4, 64), (4, 256), (1, 128), (16, 128)]
    if quick:
        sizes |= {"num_hidden_layers": 4}
        cases = cases[:1]
    if not on_gpu:
        sizes = {name: max(2, size // 32) for name, size in sizes.items()}
        cases = [(4, 4)]
    for queries, length in cases:
        settings = GpuStepSettings(
            model="TinyLlama-1.1B, random",
            dtype="bfloat16" if on_gpu else "float32",
            queries=queries,
            batch_size=EFFECTIVE // queries,
            length=length,
            rank=16,
            targets=["q_proj", "v_proj"],
            device=device,
            source=device,
            sizes=sizes,
        )
        _case(report, settings, 0.2 if quick else 1.0)


def _case(report: GpuReport, settings: GpuStepSettings, seconds: float) -> None:
    """One row for each kind of step."""
    best: dict[str, Timing] = {}
    peaks: dict[str, float] = {}
    for name, make in STEPS.items():
        forms: dict[str, Timing] = {}
        form_settings = [settings]
        if settings.device.type == "cuda":
            form_settings.append(replace(settings, graph=True))
        for form in form_settings:
            timing, peak = _measured(name, make, form, seconds)
            forms["graph" if form.graph else "kernel by kernel"] = timing
            peaks[name] = peak if name not in peaks else min(peaks[name], peak)
        best[name] = min(forms.values(), key=lambda timing: timing.p50)
        report.add(
            {"q": settings.queries, "T": settings.length, "rows": 2 * EFFECTIVE, "step": name},
            forms,
            {
                "ms": forms["kernel by kernel"].show(1e3),
                "ms as a graph": forms["graph"].show(1e3) if "graph" in forms else "-",
                "time / bare": best[name].p50 / best["bare forward"].p50,
                "peak MB": peaks[name],
                "peak / bare": peaks[name] / peaks["bare forward"] if peaks["bare forward"] else "-",
            },
        )
    case, own = f"(q={settings.queries}, T={settings.length})", best["ours"].p50
    report.goal(f"step / bare forward {case}", own / best["bare forward"].p50, below=1.05)
    report.goal(f"MeZO / step {case}", best["sequential MeZO"].p50 / own, at_least=4.3)
    report.goal(f"P-RGE / step {case}", best["stacked P-RGE"].p50 / own, at_least=1.3)
    if peaks["bare forward"]:
        report.goal(f"peak memory / inference {case}", peaks["ours"] / peaks["bare forward"], below=1.02)


def _measured(
    name: str, make: Callable[..., Step], settings: GpuStepSettings, seconds: float
) -> tuple[Timing, float]:
    """Time of a step, and the peak of allocated memory in MB (10^6 bytes; 0 without a GPU)."""
    on_gpu = settings.device.type == "cuda"
    if name == "ours":  # its graph holds the whole step; it alone takes batches as a loader gives them
        step = ours(replace(settings, source=torch.device("cpu"), graph=False), cuda_graph=settings.graph)
    else:
        step = make(settings)
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(settings.device)
    for _ in range(3):  # compiles, tunes, captures
        step()
    peak = torch.cuda.max_memory_allocated(settings.device) / 1e6 if on_gpu else 0.0
    timing = time_steps(step, settings.device, seconds)
    del step
    gc.collect()
    if on_gpu:
        torch.cuda.empty_cache()
    return timing, peak
