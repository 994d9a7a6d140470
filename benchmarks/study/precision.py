"""How well a projected gradient follows the slope it stands for, by the size of the perturbation and base.

For some batches and directions z, (L(+eps z) - L(-eps z)) / (2 eps) of each base is compared with exact
slopes <grad L, z>, by back-propagation in float32: those of the float32 model (correlation, and the median
error relative to the slopes' spread), and those of the base's own weights, which are others where they are
quantised (own, the correlation, and noise, the root mean square of what (L(+eps z) - L(-eps z)) / 2 is off
by, in the units of the loss). "program" is the arithmetic of a training program inside ExecuTorch: over
float32, the embedding in 8 bits, and for "int4" and "int8-dynamic" the inputs of linears, too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.harness import Report, count, parser
from benchmarks.study.first_order import first_order_twin, label_loss
from benchmarks.study.setting import Material, Recipe, material, wrapped_model
from mobizo_kernels.data import collate, training_batches
from mobizo_kernels.executorch.quantization import quantize
from mobizo_kernels.lora import adapter_layers, adapter_of
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.models import quantize_base
from mobizo_kernels.ops import noise

EPS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 2e-1)
BASES = (
    "float32", "bfloat16", "int8", "int8-dynamic", "int4", "program int8", "program int8-dynamic",
    "program int4",
)  # fmt: skip


def main() -> None:
    options = _options()
    torch.set_num_threads(options.threads)
    report = Report("study_precision", options)
    quick = options.quick
    for tail in options.tails:
        recipe = Recipe(tail=tail, targets="q_proj,v_proj")
        data = material(recipe.task, 1, 1)
        batches = [
            collate(rows, data.pad)
            for rows in islice(training_batches(data.train, 8, 0), 1 if quick else options.batches)
        ]
        seeds = torch.arange(4 if quick else options.directions)
        exact = exact_slopes(recipe, data, batches, seeds, "float32")
        for base in BASES[:2] if quick else options.bases:
            own = exact if base == "float32" else exact_slopes(recipe, data, batches, seeds, base)
            for eps, estimated in estimated_slopes(recipe, data, batches, seeds, base):
                error = np.abs(estimated - exact) / exact.std()
                results = {
                    "correlation": _correlation(exact, estimated),
                    "median error": float(np.median(error)),
                    "own": _correlation(own, estimated),
                    "noise": f"{eps * np.sqrt(np.square(estimated - own).mean()):.1e}",
                }
                report.add({"tail": tail, "base": base, "eps": f"{eps:g}"}, {}, results)
    report.finish()


def exact_slopes(
    recipe: Recipe,
    data: Material,
    batches: list[dict[str, torch.Tensor]],
    seeds: torch.Tensor,
    base: str,
) -> np.ndarray:
    """<grad L, z> of each batch along each direction over the weights of a base, [batches, directions]."""
    model = _randomized(wrapped_model(recipe, data, dtype="float32"))
    twin, factors = first_order_twin(model, "float32")
    _copy_weights(model_of(recipe, data, base), twin)
    layers = adapter_layers(model)
    slopes = np.empty((len(batches), len(seeds)))
    for row, batch in enumerate(batches):
        label_loss(twin, batch, data.candidates).backward()
        for column, seed in enumerate(seeds):
            slopes[row, column] = sum(
                float(
                    (
                        factors[name].grad
                        * noise(layer.lora_b.shape, seed, layer.stream, recipe.distribution)
                    ).sum()
                )
                for name, layer in layers.items()
            )
        twin.zero_grad()
    return slopes


def estimated_slopes(
    recipe: Recipe,
    data: Material,
    batches: list[dict[str, torch.Tensor]],
    seeds: torch.Tensor,
    base: str,
) -> Iterator[tuple[float, np.ndarray]]:
    """For each eps the central differences, [batches, directions]."""
    model = model_of(recipe, data, base)
    loss = LabelledLoss(model, candidate_tokens=data.candidates)
    directions = adapter_of(model).directions
    for eps in EPS:
        slopes = np.empty((len(batches), len(seeds)))
        coeffs = torch.tensor([eps] * len(seeds) + [-eps] * len(seeds))
        with directions.use(seeds.repeat(2), coeffs, recipe.distribution):
            for row, batch in enumerate(batches):
                plus, minus = loss(batch, 2 * len(seeds)).double().split(len(seeds))
                slopes[row] = ((plus - minus) / (2 * eps)).numpy()
        yield eps, slopes


@torch.no_grad()
def model_of(recipe: Recipe, data: Material, base: str) -> Any:
    """SmolLM2 with the adapter of the recipe over a base of `BASES`."""
    in_program = base.startswith("program ")
    dtype = "float32" if base == "float32" or in_program else "bfloat16"
    model = _randomized(wrapped_model(recipe, data, dtype=dtype))
    if in_program:
        quantize(model, base.removeprefix("program "), head=False)
    elif base not in ("float32", "bfloat16"):
        quantize_base(model, base)
    return model


@torch.no_grad()
def _copy_weights(model: Any, twin: Any) -> None:
    """Give PEFT's model the weights of another, as float32."""
    base = twin.get_base_model()
    base.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().float().clone(), requires_grad=False)
    tokens = torch.arange(base.config.vocab_size)
    base.get_input_embeddings().weight.copy_(model.get_input_embeddings()(tokens).float())
    for name, module in base.named_modules():
        inner = getattr(module, "base_layer", module)
        if isinstance(inner, nn.Linear) and not name.endswith("base_layer") and "lora_" not in name:
            weight = getattr(model.get_submodule(name), "base_layer", model.get_submodule(name)).weight
            inner.weight.copy_(_plain(weight))


def _plain(weight: torch.Tensor) -> torch.Tensor:
    """A weight of torchao's as an ordinary tensor, any other as it is."""
    return weight.detach() if type(weight.data) is torch.Tensor else weight.dequantize()


def _correlation(exact: np.ndarray, estimated: np.ndarray) -> float:
    return float(np.corrcoef(exact.ravel(), estimated.ravel())[0, 1])


def _randomized(model: Any) -> Any:
    """B away from zero, as in the middle of a run; the same on every call."""
    rng = torch.Generator().manual_seed(0)
    for layer in adapter_layers(model).values():
        layer.lora_b.data.copy_(0.01 * torch.randn(layer.lora_b.shape, generator=rng))
    return model


def _options() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--tails", type=int, nargs="+", default=[2, 0], help="as in the study of recipes")
    options.add_argument("--bases", nargs="+", choices=BASES, default=BASES, metavar="BASE", help="which")
    options.add_argument("--batches", type=count, default=12, help="of 8 rows")
    options.add_argument("--directions", type=count, default=16, help="for each batch")
    return options.parse_args()


if __name__ == "__main__":
    main()
