"""One step of training, ours and the peers', and the bare forwards that bound it, on one model and batch.

A variant is a function of `StepSettings` that loads a model and returns its step; `STEPS` names them all.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import peft
import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel

import mobizo_kernels as mobizo
from benchmarks.peers import make_stack_, mezo_perturb_, stacked_lora_linear
from mobizo_kernels.loss import IGNORED
from mobizo_kernels.loss.compiled import CompiledLayers
from mobizo_kernels.loss.float32_products import fast_float32_products
from mobizo_kernels.loss.sharing import StateStore
from mobizo_kernels.models import load_model

EPS, LR = 1e-2, 1e-5

Step = Callable[[], float]
"""Makes a step and returns its loss."""


@dataclass(frozen=True)
class StepSettings:
    """The model and the step: q two-sided queries on a batch of B rows, each `length` tokens and a label."""

    model: str
    dtype: str
    queries: int
    batch_size: int
    length: int
    rank: int
    targets: list[str]

    @property
    def groups(self) -> int:
        return 2 * self.queries

    @property
    def alpha(self) -> int:
        return 2 * self.rank

    def load(self) -> PreTrainedModel:
        model = load_model(self.model, self.dtype)[0]
        for parameter in model.parameters():
            parameter.sum()  # weights are mapped from their file: read them in before memory is measured
        return model

    def tokens(self) -> torch.Tensor:
        """int64 [B, length + 1]; the last one is the label. Any tokens will do: nothing depends on them."""
        random = torch.Generator().manual_seed(0)
        return torch.randint(1000, 10000, (self.batch_size, self.length + 1), generator=random)

    def rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """What a forward of all groups sees, int64 [G * B, length], and the label of each row, [G * B]."""
        tokens = self.tokens().repeat(self.groups, 1)
        return tokens[:, :-1], tokens[:, -1]


def bare_forward(settings: StepSettings, compile: bool = False, products: bool = False) -> Step:
    """The limit: the same rows through the un-adapted model, its LM head at the labelled position only."""
    model, (inputs, labels) = with_folded_head(settings.load()), settings.rows()
    running = layers_of(model, compile, products)

    def step() -> float:
        with running():
            return label_losses(model, inputs, labels, settings.groups).mean().item()

    return step


def layers_of(
    model: PreTrainedModel, compile: bool, products: bool = False
) -> Callable[[], AbstractContextManager[None]]:
    """What to forward the model in: its layers run compiled as those of ours do, its float32 products by what
    ours take on this CPU, or both as they are.
    """
    if compile:
        return CompiledLayers(model).running
    return partial(fast_float32_products, model) if products else nullcontext


def full_logits_forward(settings: StepSettings) -> Step:
    """The same rows with logits of every token, as a causal LM of transformers gives them by default.

    The public codes of the peers compute them; here the peers do without.
    """
    model, (inputs, labels) = settings.load(), settings.rows()
    targets = torch.full_like(inputs, IGNORED)
    targets[:, -1] = labels

    def step() -> float:
        logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=False).logits
        parts = zip(logits.chunk(settings.groups), targets.chunk(settings.groups), strict=True)
        losses = [F.cross_entropy(part.flatten(0, 1).float(), target.flatten()) for part, target in parts]
        return torch.stack(losses).mean().item()

    return step


def ours(
    settings: StepSettings,
    cuda_graph: bool = False,
    *,
    tail: int = 0,
    lower: float = 0.0,
    kept: bool = False,
    words: tuple[int, ...] = (),
    distribution: str = "gaussian",
    compile: bool = False,
) -> Step:
    """ZerothOrder.step on a wrapped model.

    Args:
        settings: of the step.
        cuda_graph: as of `ZerothOrder`.
        tail: tokens at the end on which the adapters act (Activated LoRA), 0 for all.
        lower: share of the layers, from below, that have no adapter.
        kept: the states of the rows are kept from the step before, as in a second epoch.
        words: the tokens that are labels, between which the loss is; none for all of the vocabulary.
        distribution: as of `ZerothOrder`.
        compile: as of `ZerothOrder`.
    """
    model, tokens = settings.load(), settings.tokens()
    count = model.config.get_text_config().num_hidden_layers
    if words:
        tokens[:, -1] = torch.tensor(words)[tokens[:, -1] % len(words)]
    if tail:
        tokens[:, -1 - tail : -1] = torch.arange(5, 5 + tail)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=settings.targets,
        layers_to_transform=list(range(round(lower * count), count)),
        alora_invocation_tokens=list(range(5, 5 + tail)) or None,
        task_type="CAUSAL_LM",
    )
    mobizo.wrap(model, config)
    store = StateStore() if kept else None
    zo = mobizo.ZerothOrder(
        model,
        queries=settings.queries,
        eps=5 * EPS if tail else EPS,  # two tokens change the loss less
        lr=LR,
        candidate_tokens=words or None,
        distribution=distribution,
        cuda_graph=cuda_graph,
        compile=compile,
        store=store,
    )
    batch = labelled(tokens)
    return lambda: zo.step(batch).loss


def stacked_prge(settings: StepSettings, compile: bool = False, products: bool = False) -> Step:
    """P-RGE (arXiv 2409.15520) with a stack of 2q perturbed B in every layer.

    At its best: adapters by one batched product added in place, noise drawn once in a step (the public code
    draws it three times, to perturb, restore and update), and logits at the labelled position only.
    """
    model, (inputs, labels) = with_folded_head(settings.load()), settings.rows()
    layers = []
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name.rpartition(".")[2] in settings.targets:
            layers.append(StackedLoRALinear(module, settings))
            model.set_submodule(name, layers[-1])
    running = layers_of(model, compile, products)

    def step() -> float:
        for layer in layers:
            layer.perturb()
        with running():
            plus, minus = label_losses(model, inputs, labels, settings.groups).chunk(2)
        for layer in layers:
            layer.update((plus - minus) / (2 * EPS))
        return torch.cat([plus, minus]).mean().item()

    return step


def sequential_mezo(settings: StepSettings) -> Step:
    """MeZO (arXiv 2305.17333, Algorithm 1; q queries in turn, two forwards of B rows each) over PEFT LoRA.

    B alone is perturbed, as by the others, and the noise is made anew from its seed in all four passes.
    Logits are computed at the labelled position only.
    """
    return mezo(*lora_fa(settings), settings)


def all_parameters_mezo(settings: StepSettings) -> Step:
    """:func:`sequential_mezo` over every parameter of the model."""
    model = with_folded_head(settings.load())
    return mezo(model, list(model.parameters()), settings)


def all_parameters(settings: StepSettings) -> Step:
    """ZerothOrder.step on every parameter of the model."""
    zo = mobizo.ZerothOrder(settings.load(), queries=settings.queries, eps=EPS, lr=LR)
    batch = labelled(settings.tokens())
    return lambda: zo.step(batch).loss


def all_parameters_batched(settings: StepSettings) -> Step:
    """The same in one batched forward, with directions "outer"."""
    model = mobizo.wrap_parameters(settings.load())
    zo = mobizo.ZerothOrder(model, queries=settings.queries, eps=1e-3, lr=LR, distribution="outer")
    batch = labelled(settings.tokens())
    return lambda: zo.step(batch).loss


def mezo(model: nn.Module, params: list[nn.Parameter], settings: StepSettings) -> Step:
    """The step of :func:`sequential_mezo` on any parameters."""
    tokens = settings.tokens()

    def perturb(seed: int, coeff: float) -> None:
        torch.manual_seed(seed)
        mezo_perturb_(params, coeff)

    def loss() -> float:
        return label_losses(model, tokens[:, :-1], tokens[:, -1], groups=1).item()

    def step() -> float:
        losses, gradients = [], []
        for seed in range(settings.queries):
            for coeff in (EPS, -2 * EPS):
                perturb(seed, coeff)
                losses.append(loss())
            perturb(seed, EPS)
            gradients.append((losses[-2] - losses[-1]) / (2 * EPS))
        for seed, gradient in enumerate(gradients):
            perturb(seed, -LR / settings.queries * gradient)
        return sum(losses) / len(losses)

    return step


def first_order(settings: StepSettings, checkpointing: bool = False) -> Step:
    """LoRA-FA by back-propagation: PEFT, frozen A, AdamW over B, as many rows as the others forward.

    Logits are computed at the labelled position only. With `checkpointing` a layer keeps its input alone
    and is computed again on the way back.
    """
    model, params = lora_fa(settings)
    inputs, labels = settings.rows()
    optimizer = torch.optim.AdamW(params, lr=LR, fused=True)
    if checkpointing:
        model.train()  # transformers checkpoints in training mode only; nothing here has dropout
        model.gradient_checkpointing_enable({"use_reentrant": False})

    @torch.enable_grad()
    def step() -> float:
        loss = label_losses(model, inputs, labels, groups=1).mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def lora_fa(settings: StepSettings) -> tuple[peft.PeftModel, list[nn.Parameter]]:
    """The model with PEFT's LoRA, and its B, which alone take gradients.

    The adapters have the model's dtype: the float32 that PEFT would choose over bfloat16 is slower.
    """
    config = peft.LoraConfig(r=settings.rank, lora_alpha=settings.alpha, target_modules=settings.targets)
    model = peft.get_peft_model(with_folded_head(settings.load()), config, autocast_adapter_dtype=False)
    for name, param in model.named_parameters():
        param.requires_grad_("lora_B" in name)
    return model, [param for param in model.parameters() if param.requires_grad]


class StackedLoRALinear(nn.Module):
    """A linear with frozen A, central B [r, out] and the stack [2q, r, out] of its perturbed copies."""

    def __init__(self, base: nn.Linear, settings: StepSettings) -> None:
        super().__init__()
        self.weight, self.scaling = base.weight, settings.alpha / settings.rank
        weight, size_of_b = base.weight, (settings.rank, base.out_features)
        self.lora_a = weight.new_empty(settings.rank, base.in_features).normal_(std=base.in_features**-0.5)
        self.lora_b = weight.new_zeros(size_of_b)
        self.stack = weight.new_zeros(settings.groups, *size_of_b)

    def perturb(self) -> None:
        """New directions."""
        make_stack_(self.stack, torch.empty_like(self.stack[: len(self.stack) // 2]), self.lora_b, EPS)

    def update(self, gradients: torch.Tensor) -> None:
        """B -= lr * mean_k g_k z_k, with z out of the difference of the two halves; gradients is [q]."""
        plus, minus = self.stack.chunk(2)
        coeffs = (LR / len(gradients) * gradients / (2 * EPS)).to(plus.dtype)
        self.lora_b -= torch.tensordot(coeffs, plus - minus, dims=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.flatten(0, -2)
        out = stacked_lora_linear(rows, self.weight, self.lora_a, self.stack, self.scaling)
        return out.unflatten(0, x.shape[:-1])


def with_folded_head(model: PreTrainedModel) -> PreTrainedModel:
    """The model with the input of its LM head made contiguous.

    transformers slices the labelled position out of the hidden states, and over such a slice torch multiplies
    row by row, for which it may copy the whole head for every row: seconds in bfloat16.
    """
    head = model.get_output_embeddings()
    head.register_forward_pre_hook(lambda module, inputs: (inputs[0].contiguous(),))
    return model


def labelled(tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """A batch whose last token is to be predicted."""
    labels = torch.full_like(tokens, IGNORED)
    labels[:, -1] = tokens[:, -1]
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}


def label_losses(model: nn.Module, inputs: torch.Tensor, labels: torch.Tensor, groups: int) -> torch.Tensor:
    """The loss of each group, float32 [groups], with logits at the labelled position only."""
    mask = torch.ones_like(inputs)
    logits = model(input_ids=inputs, attention_mask=mask, use_cache=False, logits_to_keep=1).logits
    losses = F.cross_entropy(logits[:, 0].float(), labels, reduction="none")
    return losses.view(groups, -1).mean(dim=1)


# Adapters, loss and directions of docs/recipe.md; the options of the benchmark make the rest of it.
recipe = partial(ours, tail=2, lower=1 / 3, words=(7, 9), distribution="rademacher")

STEPS: dict[str, Callable[[StepSettings], Step]] = {
    "bare forward": bare_forward,
    "bare forward, compiled": partial(bare_forward, compile=True),
    "bare forward, our products": partial(bare_forward, products=True),
    "ours": ours,
    "ours, compiled": partial(ours, compile=True),
    "recipe": recipe,
    "recipe, compiled": partial(recipe, compile=True),
    "ours, upper half": partial(ours, lower=0.5),
    "ours, 2 tokens": partial(ours, tail=2),
    "ours, 2 tokens, upper half": partial(ours, tail=2, lower=0.5),
    "ours, 2 tokens, states kept": partial(ours, tail=2, kept=True),
    "stacked P-RGE": stacked_prge,
    "stacked P-RGE, compiled": partial(stacked_prge, compile=True),
    "stacked P-RGE, our products": partial(stacked_prge, products=True),
    "sequential MeZO": sequential_mezo,
    "first order": first_order,
    "first order, checkpointed": partial(first_order, checkpointing=True),
    "all parameters, ours": all_parameters,
    "all parameters, batched": all_parameters_batched,
    "all parameters, MeZO": all_parameters_mezo,
    "full logits": full_logits_forward,
}
