"""How well a projected gradient follows the slope it stands for, by the size of the perturbation and base.

For some batches and directions z, (L(+eps z) - L(-eps z)) / (2 eps) of a base of each type is compared with
the exact slope <grad L, z>, by back-propagation in float32: their correlation, and the median error relative
to the slopes' spread. The quantised bases are no rounding of the float32 one but models of their own.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Report, count, parser
from benchmarks.study.runs import Material, Recipe, first_order_twin, label_loss, material, wrapped_model
from mobizo_kernels.data import collate, training_batches
from mobizo_kernels.lora import adapter_layers, adapter_of
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.models import quantize_base
from mobizo_kernels.ops import noise

EPS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
BASES = ("float32", "bfloat16", "int8", "int4")


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
        exact = exact_slopes(recipe, data, batches, seeds)
        for base in BASES[:2] if quick else BASES:
            for eps, estimated in estimated_slopes(recipe, data, batches, seeds, base):
                error = np.abs(estimated - exact) / exact.std()
                results = {
                    "correlation": float(np.corrcoef(exact.ravel(), estimated.ravel())[0, 1]),
                    "median error": float(np.median(error)),
                }
                report.add({"tail": tail, "base": base, "eps": f"{eps:g}"}, {}, results)
    report.finish()


def exact_slopes(
    recipe: Recipe, data: Material, batches: list[dict[str, torch.Tensor]], seeds: torch.Tensor
) -> np.ndarray:
    """<grad L, z> of each batch along each direction, [batches, directions]."""
    model = _randomized(wrapped_model(recipe, data, dtype="float32"))
    twin, factors = first_order_twin(model, "float32")
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
    dtype = "float32" if base == "float32" else "bfloat16"
    model = _randomized(wrapped_model(recipe, data, dtype=dtype))
    quantize_base(model, base if base in ("int8", "int4") else "none")
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


def _randomized(model: Any) -> Any:
    """B away from zero, as in the middle of a run; the same on every call."""
    rng = torch.Generator().manual_seed(0)
    for layer in adapter_layers(model).values():
        layer.lora_b.data.copy_(0.01 * torch.randn(layer.lora_b.shape, generator=rng))
    return model


def _options() -> argparse.Namespace:
    options = parser(__doc__)
    options.add_argument("--tails", type=int, nargs="+", default=[2, 0], help="as in the study of recipes")
    options.add_argument("--batches", type=count, default=12, help="of 8 rows")
    options.add_argument("--directions", type=count, default=16, help="for each batch")
    return options.parse_args()


if __name__ == "__main__":
    main()
