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
from mobizo_kernels.conventions import IGNORED
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
        loss = label_loss(twin, batch, data.candidates, recipe.tail if kept else None)
        loss.backward()
        if exact:
            gradients = [b.grad for b in factors.values()]
            torch._foreach_div_(gradients, torch.nn.utils.get_total_norm(gradients))
        optimizer.step()
        optimizer.zero_grad()
        return batch["input_ids"][:, :-1].numel()

    return take_step


def first_order_twin(model: Any, dtype: str) -> tuple[Any, dict[str, torch.nn.Parameter]]:
    """PEFT's model with the adapter of a wrapped one, A frozen, and its B by path. All is the same memory,
    the weights too, which have to be of the type `dtype`.
    """
    base = with_folded_head(load_model("smollm2", dtype)[0])
    weights = dict(model.named_parameters())
    for name, parameter in base.named_parameters():
        owner, _, kind = name.rpartition(".")
        there = weights.get(name, weights.get(f"{owner}.base_layer.{kind}"))
        assert there is not None, name
        parameter.data = there.detach()
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


def label_loss(
    model: Any, batch: dict[str, torch.Tensor], candidates: tuple[int, ...], tail: int | None = None
) -> torch.Tensor:
    """Cross-entropy between the label words at the end of each row. With `tail` the gradient goes back
    through that many tokens of the prompt, and no further: before them is the base model, which needs none.
    """
    targets = (batch["labels"][:, -1:] == torch.tensor(candidates)).int().argmax(dim=1)
    logits = _last_logits(model, batch, 1, tail)[:, -1, list(candidates)]
    return F.cross_entropy(logits.float(), targets)


def answer_loss(model: Any, batch: dict[str, torch.Tensor], tail: int | None = None) -> torch.Tensor:
    """Cross-entropy of the answers at the end of each row. With `tail` the gradient goes back through them
    and that many tokens before the longest, and no further.
    """
    answers = int((batch["labels"] != IGNORED).sum(dim=1).max())
    logits = _last_logits(model, batch, answers, None if tail is None else tail + answers - 1)
    return F.cross_entropy(logits.flatten(0, 1).float(), batch["labels"][:, -answers:].flatten())


def _last_logits(model: Any, batch: dict[str, torch.Tensor], count: int, tail: int | None) -> torch.Tensor:
    """Those of the last `count` predictions of each row, [B, count, V], with a graph behind the last `tail`
    tokens that predict something: what is before them comes from a forward that keeps keys and values alone.
    """
    ids, mask = batch["input_ids"][:, :-1], batch["attention_mask"][:, :-1]
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    states, begin = None, 0
    if tail is not None:
        begin = ids.shape[1] - tail
        with torch.no_grad():
            states = model(
                input_ids=ids[:, :begin], attention_mask=mask[:, :begin], position_ids=positions[:, :begin],
                use_cache=True, logits_to_keep=1,
            ).past_key_values  # fmt: skip
    found: torch.Tensor = model(
        input_ids=ids[:, begin:], attention_mask=mask, position_ids=positions[:, begin:],
        past_key_values=states, use_cache=states is not None, logits_to_keep=count,
    ).logits  # fmt: skip
    return found
