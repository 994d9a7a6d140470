"""Back-propagation to the B of an adapter of this package's, in PEFT's model and in the same memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peft import get_peft_model
from peft.tuners.lora import LoraLayer

from benchmarks.steps import with_folded_head
from benchmarks.study.setting import Material, Recipe
from mobizo_kernels.lora import adapter_layers, adapter_of, tuned_layers
from mobizo_kernels.models import load_model


def first_order(
    recipe: Recipe, model: Any, data: Material
) -> Callable[[dict[str, torch.Tensor], float], int]:
    """LoRA-FA by back-propagation, as PEFT's users run it, to the B of the wrapped model: by AdamW, or by
    steps of a length along the gradient; through the whole sequence, or through the tail alone.
    """
    twin, factors = first_order_twin(model, recipe.dtype)
    exact = recipe.method.startswith("exact-gradient")
    optimizer: torch.optim.Optimizer
    if exact:
        optimizer = torch.optim.SGD(factors.values(), lr=recipe.lr)
    else:
        optimizer = torch.optim.AdamW(factors.values(), lr=recipe.lr, weight_decay=0.0)
    kept = recipe.method.endswith("-kept")

    def take_step(batch: dict[str, torch.Tensor], factor: float) -> int:
        optimizer.param_groups[0]["lr"] = recipe.lr * factor
        if kept:
            loss = tail_loss(twin, batch, data.candidates, recipe.tail)
        else:
            loss = label_loss(twin, batch, data.candidates)
        loss.backward()
        if exact:
            gradients = [b.grad for b in factors.values()]
            torch._foreach_div_(gradients, torch.nn.utils.get_total_norm(gradients))
        optimizer.step()
        optimizer.zero_grad()
        return batch["input_ids"][:, :-1].numel()

    return take_step


def first_order_twin(model: Any, dtype: str) -> tuple[Any, dict[str, torch.nn.Parameter]]:
    """PEFT's model with the adapter of a wrapped one, A frozen, and its B by path: all the same memory."""
    base = with_folded_head(load_model("smollm2", dtype)[0])
    twin = get_peft_model(base, adapter_of(model).config).eval()
    modules = {
        name.removeprefix("base_model.model."): module
        for name, module in twin.named_modules()
        if isinstance(module, LoraLayer)
    }
    tuned, factors = tuned_layers(model), {}
    for name, layer in adapter_layers(model).items():
        a, b = modules[name].lora_A["default"].weight, modules[name].lora_B["default"].weight
        a.data, b.data = layer.lora_a.detach(), layer.lora_b.detach()
        a.requires_grad_(False)
        if name in tuned:
            factors[name] = b
        else:  # a readout in the LM head
            b.requires_grad_(False)
    return twin, factors


def label_loss(model: Any, batch: dict[str, torch.Tensor], candidates: tuple[int, ...]) -> torch.Tensor:
    """Cross-entropy between the label words at the end of each row, by the labelled position's logits."""
    ids, mask = batch["input_ids"][:, :-1], batch["attention_mask"][:, :-1]
    words = torch.tensor(candidates)
    targets = (batch["labels"][:, -1:] == words).int().argmax(dim=1)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logits = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1
    ).logits[:, -1, words]
    return F.cross_entropy(logits.float(), targets)


def tail_loss(
    model: Any, batch: dict[str, torch.Tensor], candidates: tuple[int, ...], tail: int
) -> torch.Tensor:
    """:func:`label_loss` whose gradient goes back through the tail alone: before it is the base model, which
    needs none.
    """
    ids, mask = batch["input_ids"][:, :-1], batch["attention_mask"][:, :-1]
    words = torch.tensor(candidates)
    targets = (batch["labels"][:, -1:] == words).int().argmax(dim=1)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        states = model(
            input_ids=ids[:, :-tail], attention_mask=mask[:, :-tail], position_ids=positions[:, :-tail],
            use_cache=True, logits_to_keep=1,
        ).past_key_values  # fmt: skip
    logits = model(
        input_ids=ids[:, -tail:], attention_mask=mask, position_ids=positions[:, -tail:],
        past_key_values=states, logits_to_keep=1,
    ).logits[:, -1, words]  # fmt: skip
    return F.cross_entropy(logits.float(), targets)
