"""From a causal LM to a .pte that trains itself: what is asked for, what the file says of itself."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from mobizo_kernels.data import PromptEncoder
from mobizo_kernels.executorch.agreement import Agreement
from mobizo_kernels.executorch.architecture import cannot_be_exported, check_architecture
from mobizo_kernels.executorch.delegated import DelegatedGraph
from mobizo_kernels.executorch.describe import describe
from mobizo_kernels.executorch.description import DESCRIPTION, Description
from mobizo_kernels.executorch.experts import replace_experts
from mobizo_kernels.executorch.graph import TrainingGraph
from mobizo_kernels.executorch.inputs import require_lowering
from mobizo_kernels.executorch.lowering import MIN_LENGTH, lower, trace, usual_defaults, write
from mobizo_kernels.executorch.quantization import quantize
from mobizo_kernels.executorch.rotation import hold_frequencies, product_rotation
from mobizo_kernels.executorch.writing import Writer
from mobizo_kernels.executorch.writing_agreement import WritingAgreement
from mobizo_kernels.executorch.xnnpack_rewrites import GroupedAttention, replace_gelus, replace_norms
from mobizo_kernels.lora import MPLoRALinear, adapter_of, held_head, is_wrapped, wrap
from mobizo_kernels.lora.head import is_readout
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.models.quantization import require_quantization
from mobizo_kernels.ops.checks import require_distribution
from mobizo_kernels.optim import UpdateRule
from mobizo_kernels.zo import Estimator, make_estimator, make_rule

MAX_QUERIES = 256


def export_training_program(
    model: PreTrainedModel,
    path: str | os.PathLike[str],
    *,
    batch_size: int = 4,
    max_length: int = 128,
    targets: LoraConfig | Sequence[str] | None = None,
    estimator: Estimator | str = "two_sided",
    distribution: str = "gaussian",
    optimizer: UpdateRule | str = "sgd",
    quantization: str = "none",
    lowering: str = "custom-op",
    dynamic_length: bool = True,
    targets_per_row: int = 1,
    candidate_tokens: Sequence[int] | None = None,
    tail_length: int | None = None,
    context: int | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    prompt: PromptEncoder | None = None,
    seed: int = 0,
    queries: int | None = None,
    momentum: float | None = None,
    betas: tuple[float, float] | None = None,
    adam_eps: float | None = None,
    weight_decay: float | None = None,
) -> Description:
    """Write a program that trains LoRA-B of `model` by forward passes, and evaluates it, inside ExecuTorch.

    The program holds the model, the loss and the update (MobiZO, arXiv 2409.15520). Its methods share the
    LoRA-B buffers; docs/executorch.md lists them with their arguments. Seeds, coefficients and learning rate
    are inputs, so one program serves any run of its optimizer. Base linears and the rest of the decoder go to
    XNNPACK, the adapters and their update to this package's ops. What is equal in all groups is computed
    once: the layers below the first adapted one and, with LoraConfig.alora_invocation_tokens (Activated LoRA,
    arXiv 2504.12397), the keys and values of the tokens before these.

    With candidate tokens a readout (:func:`mobizo_kernels.training.readout`) can be made with the program,
    unless the LM head is tuned. One that the model has is held.

    Args:
        model: a causal LM of transformers, wrapped or not; it is copied and not changed. Weights of lower
            precision become float32.
        path: of the .pte; replaced only when the new one is complete.
        batch_size: B, rows of a step. The forward runs over G * B rows, G = 2q (two_sided), q + 1
            (one_sided) or q (centred).
        max_length: most tokens of a row's input.
        targets: what to adapt where the model is not wrapped yet: a LoraConfig, or names of linears, which
            get rank 8 and alpha 16.
        estimator: a :class:`mobizo_kernels.TwoSided`, :class:`mobizo_kernels.OneSided` or
            :class:`mobizo_kernels.Centred`, of at most 256 queries, or the name "two_sided", "one_sided" or
            "centred" of one that is made of `queries`. Its eps, and whether it normalizes, are a run's to
            choose.
        distribution: of the directions, "gaussian", "rademacher" or "outer".
        optimizer: a :class:`mobizo_kernels.UpdateRule`, or the name "sgd", "adam" or "sign" of one that is
            made of `momentum` and what follows it. What it keeps of LoRA-B lies in buffers of the program;
            its learning rate is a run's to choose.
        quantization: of the base weights: "none" (float32), "int8", "int8-dynamic" or "int4"; see
            docs/executorch.md.
        lowering: of the adapters: "custom-op", this package's ops, which keep LoRA-B in buffers of the
            program; "delegated", stock operators alone, for directions "outer": XNNPACK takes the decoder and
            its adapters as one, and the trainer keeps LoRA-B.
        dynamic_length: take any length from 3 to `max_length`; else exactly `max_length`.
        targets_per_row: K, most tokens to predict in a row.
        candidate_tokens: restrict the softmax to these, as the loss on label words does.
        tail_length: n, most tokens of a row's input from its invocation tokens on; by default these and all
            targets but the last. For Activated LoRA only.
        context: let the program write, too, and give it room for so many tokens of a prompt and its answer.
        tokenizer: its fingerprint goes into the program, which then refuses data of any other, and so does
            its chat template in pieces, by which the program takes conversations as text.
        prompt: by which the program takes labelled texts, of this tokenizer and these candidate tokens.
        seed: of LoRA-A where the model is not wrapped yet.
        queries: q, random directions in each step; 4 by default.
        momentum: of "sgd", in [0, 1).
        betas: of "adam".
        adam_eps: of "adam".
        weight_decay: of LoRA-B, decoupled.

    Returns:
        The description that the program carries.

    Raises:
        ValueError: naming the argument, if one is out of range or given beside an object that has it, or if
            the model cannot be exported: a check against the model's own loss runs before anything is
            lowered.
        OSError: if `path` cannot be written.
    """
    plan = make_estimator(estimator, queries=queries)
    rule = make_rule(optimizer, momentum=momentum, betas=betas, adam_eps=adam_eps, weight_decay=weight_decay)
    _check(plan.queries, batch_size, max_length, targets_per_row, quantization, distribution)
    require_lowering(lowering, distribution)
    _check_prompt(prompt, tokenizer, candidate_tokens)
    _check_writable(Path(path))
    if not is_wrapped(model):
        if targets is None:
            raise ValueError("targets must be given for a model that is not wrapped")
        config = targets if isinstance(targets, LoraConfig) else _default_config(targets)
    elif targets is not None:
        raise ValueError("targets must be None for a wrapped model: its adapter is exported")
    elif (head := held_head(model)) is not None:
        _check_readout(head, candidate_tokens)
    check_architecture(model)
    model = copy.deepcopy(model).float().eval().requires_grad_(False)
    if not is_wrapped(model):
        wrap(model, config, seed=seed)
    text = model.config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if positions is not None and max_length > positions:
        raise ValueError(f"max_length must be at most the model's {positions} positions, got {max_length}")
    if context is not None:
        _check_context(context, positions)
    invocation = adapter_of(model).config.alora_invocation_tokens
    tail_length = _tail_length(tail_length, invocation, targets_per_row)
    min_length = MIN_LENGTH + (tail_length or 0)
    if max_length <= min_length:
        raise ValueError(f"max_length must be above {min_length}, got {max_length}")
    description = describe(
        model,
        tokenizer,
        rule,
        queries=plan.queries,
        batch_size=batch_size,
        groups=plan.groups,
        estimator=plan.name,
        distribution=distribution,
        quantization=quantization,
        min_length=min_length if dynamic_length else max_length,
        max_length=max_length,
        targets_per_row=targets_per_row,
        tail_length=tail_length,
        candidate_tokens=candidate_tokens,
        lowering=lowering,
        prompt=prompt,
        context=context,
    )
    longest = (max_length, "max_length") if context is None or context <= max_length else (context, "context")
    with torch.no_grad(), usual_defaults(), ExitStack() as forms:
        loss = LabelledLoss(model, candidate_tokens=candidate_tokens)
        replace_experts(model)
        quantize(model, quantization, head=candidate_tokens is None)
        agreement = Agreement(
            loss,
            rows=batch_size,
            groups=plan.groups,
            distribution=distribution,
            max_length=max_length,
            tail_length=tail_length,
        )
        writing = None if context is None else WritingAgreement(loss, context, min(context, max_length))
        attention = GroupedAttention(model, *longest)
        if invocation is not None and not attention.applies:
            raise cannot_be_exported(model, "alora_invocation_tokens need attention of a known kind")
        if context is not None and not attention.applies:
            raise cannot_be_exported(model, "context needs attention of a known kind")
        hold_frequencies(model, *longest)
        forms.enter_context(attention.installed(model))
        forms.enter_context(product_rotation(model))
        replace_norms(model)
        replace_gelus(model)
        graph = (DelegatedGraph if description.delegated else TrainingGraph)(
            model,
            groups=plan.groups,
            distribution=distribution,
            rule=rule,
            candidate_tokens=candidate_tokens,
            attention=attention,
            tail_length=tail_length,
            readout=description.head is not None,
        )
        rounded = quantization not in ("none", "int8")
        agreement.check(graph, rounded=rounded)
        if context is not None and writing is not None:
            graph.writer = Writer(graph, context, quantization)
            writing.check(graph, rounded=rounded)
        try:
            methods = trace(graph, description)
            lowered = lower(methods, {DESCRIPTION: description.text}, whole=description.delegated)
        except Exception as error:  # whatever torch.export and ExecuTorch make of a decoder
            raise cannot_be_exported(model, error) from error
    write(lowered, Path(path), whole=description.delegated, writes=context is not None)
    return description


def _default_config(names: Sequence[str]) -> LoraConfig:
    return LoraConfig(r=8, lora_alpha=16, target_modules=list(names), task_type="CAUSAL_LM")


def _check_prompt(
    prompt: PromptEncoder | None,
    tokenizer: PreTrainedTokenizerBase | None,
    candidate_tokens: Sequence[int] | None,
) -> None:
    if prompt is None:
        return
    if tokenizer is None:
        raise ValueError("prompt needs tokenizer, whose words it has")
    if tuple(candidate_tokens or ()) != prompt.candidate_tokens:
        raise ValueError(
            f"candidate_tokens must be those of the prompt, {list(prompt.candidate_tokens)}, got "
            f"{candidate_tokens and list(candidate_tokens)}"
        )


def _check_readout(head: MPLoRALinear, candidate_tokens: Sequence[int] | None) -> None:
    if candidate_tokens is None:
        raise ValueError("candidate_tokens must be given for a model with a readout")
    if not is_readout(head, candidate_tokens) or head.rank > len(candidate_tokens):
        raise ValueError(
            "model must be one whose LM head, if no run tunes it, has an adapter of scaling 1 for the rows "
            "of the candidate tokens alone"
        )


def _check(
    queries: int, batch_size: int, max_length: int, targets_per_row: int, quantization: str, distribution: str
) -> None:
    if queries > MAX_QUERIES:
        raise ValueError(f"queries must be from 1 to {MAX_QUERIES}, got {queries}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if not 1 <= targets_per_row <= max_length:
        raise ValueError(
            f"targets_per_row must be from 1 to max_length ({max_length}), got {targets_per_row}"
        )
    require_quantization(quantization)
    require_distribution(distribution)


def _tail_length(wanted: int | None, invocation: Sequence[int] | None, targets_per_row: int) -> int | None:
    """n of a program with these invocation tokens, None without."""
    if invocation is None:
        if wanted is not None:
            raise ValueError("tail_length must be None without LoraConfig.alora_invocation_tokens")
        return None
    if wanted is None:
        return len(invocation) + targets_per_row - 1
    if wanted < len(invocation):
        raise ValueError(
            f"tail_length must be at least {len(invocation)}, the invocation tokens, got {wanted}"
        )
    return wanted


def _check_context(context: int, positions: int | None) -> None:
    if context <= MIN_LENGTH:
        raise ValueError(f"context must be above {MIN_LENGTH}, got {context}")
    if positions is not None and context > positions:
        raise ValueError(f"context must be at most the model's {positions} positions, got {context}")


def _check_writable(path: Path) -> None:
    if path.is_dir():
        raise IsADirectoryError(f"path must be that of a file, got the directory {str(path)!r}")
    if not os.access(path.parent, os.W_OK):
        raise OSError(f"path: {str(path.parent)!r} does not exist or cannot be written to")
