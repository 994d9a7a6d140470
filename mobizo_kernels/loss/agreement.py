"""What a loss takes for granted about a model, tried on a few tokens of its own before the first batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from transformers import PreTrainedModel

from mobizo_kernels.conventions import IGNORED
from mobizo_kernels.lora import adapter_of, bare, is_wrapped, rounds_inputs
from mobizo_kernels.loss.rows import RowReader, Rows
from mobizo_kernels.parameters import parameter_directions


def checked_causal_lm(model: nn.Module) -> PreTrainedModel:
    """`model`, or that inside a PeftModel, if it is one whose loss can be computed.

    Raises:
        ValueError: if it is no causal LM of transformers, or its linears mix the rows of a batch.
    """
    model = bare(model)
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"model must be a causal LM of transformers, got {type(model).__name__}")
    if model.base_model is model or model.get_output_embeddings() is None or model.config.is_encoder_decoder:
        raise ValueError(f"model must be a decoder with an LM head, got {type(model).__name__}")
    if "lsh" in (getattr(model.config, "attn_layers", None) or ()):
        raise ValueError(f"model: the attention of {type(model).__name__} hashes at random")
    for name, module in model.named_modules():
        # Its columns of 16 bits are those where any row of the batch, and so any group, has an outlier.
        if type(module).__name__ == "Linear8bitLt" and getattr(module.state, "threshold", 0) > 0:
            raise ValueError(
                f"model: {name} is a linear of LLM.int8 (bitsandbytes), which makes a row's logits depend on "
                "the other rows of its batch; load the model with llm_int8_threshold=0"
            )
    return model


@torch.no_grad()
def check_logits(model: PreTrainedModel, reader: RowReader, ours: Callable[[Rows], torch.Tensor]) -> None:
    """Raise ValueError unless `ours` are the model's own logits and depend on nothing that they must not.

    One row is whole, one padded on the right, one on the left. Then the tokens of the first and the padding
    change: the logits of the other two may not. The shapes are equal, so that the rounding is, too.

    Args:
        model: a causal LM.
        reader: of its batches.
        ours: gives the logits [n, vocabulary] that predict the n tokens of rows.
    """
    name, width = type(model).__name__, 7
    tokens = (
        torch.arange(3 * width, device="cpu").view(3, width) * 7 + 3
    ) % model.config.get_text_config().vocab_size
    mask = torch.ones_like(tokens)
    mask[1, 4:] = 0
    mask[2, :3] = 0
    rows = reader({"input_ids": tokens, "attention_mask": mask, "labels": tokens})
    ids = rows.inputs["input_ids"].to(model.device)
    free = torch.arange(ids.shape[1], device="cpu") >= rows.lengths[:, None]
    free[0] = True
    others = torch.where(free.to(ids.device), ids.roll(2, dims=1).roll(1, dims=0), ids)

    def own(ids: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
        return logits[rows.rows.to(ids.device), rows.columns.to(ids.device)].float()

    with evaluating(model):
        try:
            expected = own(ids)
        except Exception as error:
            raise ValueError(f"{name} makes no logits of {list(ids.shape)} tokens: {error}") from error
        if not expected.isfinite().all():
            raise ValueError(f"{name} has logits that are not finite")
        try:
            got = ours(rows).float()
        except Exception as error:
            raise ValueError(f"{_unknown(name)}: {error}") from error
        if off := difference(got, expected, model):
            if difference(own(ids), expected, model):
                raise ValueError(f"{name} has other logits for the same tokens each time, also in eval mode")
            if hasattr(model, "_original_forward"):  # as Accelerator.prepare leaves it
                raise ValueError(
                    f"{name} was prepared for mixed precision: make ZerothOrder, and its steps, inside of "
                    "`with accelerator.autocast():`"
                )
            raise ValueError(f"{_unknown(name)}: ours are {off}")
        kept = (rows.rows > 0).to(ids.device)
        if off := difference(own(others)[kept], expected[kept], model, 1e-3, 5e-2):
            raise ValueError(
                f"{name} has logits that depend on later tokens or on other rows: they are {off} if only "
                "those change"
            )


def _unknown(name: str) -> str:
    return f"{name} does not get its logits from its LM head in a known way"


@torch.no_grad()
def check_groups(
    model: PreTrainedModel, reader: RowReader, ours: Callable[[Rows, int], torch.Tensor]
) -> None:
    """Raise ValueError unless each of two groups in one forward gets what it gets alone, and all parameters
    of :func:`mobizo_kernels.wrap_parameters` take part.

    Args:
        model: of that function.
        reader: of its batches.
        ours: gives the logits [groups * n, vocabulary] that predict the n tokens of rows in every group.
    """
    name, vocabulary = type(model).__name__, model.config.get_text_config().vocab_size
    ids = (torch.arange(12, device="cpu").view(2, 6) * 7 + 3) % vocabulary
    rows = reader({"input_ids": ids, "labels": ids})
    seeds = torch.tensor([1, 2], device="cpu")
    coeffs = torch.tensor([1e-2, -1e-2], dtype=torch.float32, device="cpu")
    directions = parameter_directions(model)
    for trial in directions.trials:
        trial.seen = False
    with evaluating(model):
        with directions.use(seeds, coeffs):
            together = ours(rows, 2).float().unflatten(0, (2, -1))
        for group in (0, 1):
            one = slice(group, group + 1)
            with directions.use(seeds[one], coeffs[one]):
                alone = ours(rows, 1).float()
            if off := difference(together[group], alone, model, 1e-4, 5e-2):
                raise ValueError(f"{name} mixes the groups of a batch: what one gets there is {off}")
    if unseen := [trial.name for trial in directions.trials if not trial.seen]:
        raise ValueError(
            f"{name} does not call {unseen[0]} in a forward, so its parameters cannot be moved there: freeze "
            "them by requires_grad_(False) before wrap_parameters"
        )


@torch.no_grad()
def why_not_shared(
    model: PreTrainedModel,
    reader: RowReader,
    tokens: list[int] | None,
    hidden: Callable[[Rows, bool], torch.Tensor],
) -> str | Exception | None:
    """What speaks against computing the common part of two groups once; None if they come out the same.

    Args:
        model: a wrapped causal LM.
        reader: of its batches.
        tokens: the invocation tokens of its adapter.
        hidden: gives the hidden states [2, n, H] at the n predictions of rows, with True those of a common
            part that was computed once.
    """
    vocabulary, width = model.config.get_text_config().vocab_size, 6 + len(tokens or ())
    ids = (torch.arange(2 * width, device="cpu").view(2, width) * 7 + 3) % vocabulary
    mask = torch.ones_like(ids)
    mask[1, :2] = 0
    if tokens is not None:
        ids[:, -1 - len(tokens) : -1] = torch.tensor(tokens, device="cpu")
    labels = torch.full_like(ids, IGNORED)
    labels[:, -1] = ids[:, -1]
    rows = reader({"input_ids": ids, "attention_mask": mask, "labels": labels}, tokens)
    seeds = torch.tensor([1, 2], device="cpu")
    coeffs = torch.tensor([0.1, -0.1], dtype=torch.float32, device="cpu")
    try:
        with evaluating(model), adapter_of(model).directions.use(seeds, coeffs):
            expected = hidden(rows, False).float()
            got = hidden(rows, True).float()
    except Exception as error:  # whatever a decoder of another build makes of it
        return error
    off = difference(got, expected, model, half=1e-1 if rounds_inputs(model) else 5e-2)
    return f"the result is {off}" if off else None


@torch.no_grad()
def tells_texts_apart(model: PreTrainedModel) -> bool:
    """Whether the texts of a row, whose `position_ids` begin anew at each, see nothing of each other."""
    length = 4
    ids = (
        torch.arange(4 * length, device="cpu").view(2, 2 * length) * 7 + 3
    ) % model.config.get_text_config().vocab_size
    others = ids.clone()
    others[:, :length] = ids[:, :length].flip(0, 1)
    positions = torch.arange(length, device="cpu").repeat(2, 2)

    def second(ids: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = model.base_model(
            input_ids=ids.to(model.device), position_ids=positions.to(model.device), use_cache=False
        ).last_hidden_state
        return states[:, length:].float()

    # The directions of the moment may be of more groups than two rows have.
    acting = adapter_of(model).directions.acting(False) if is_wrapped(model) else nullcontext()
    with evaluating(model), acting:
        return not difference(second(others), second(ids), model, 1e-3, 5e-2)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """No module in training mode: dropout would make any two forwards differ. And none that `model.compile()`
    has got compiled: that takes longer than all the rest.
    """
    modes = {module: module.training for module in model.modules()}
    compiled = model._compiled_call_impl
    model.eval()
    model._compiled_call_impl = None
    try:
        yield
    finally:
        model._compiled_call_impl = compiled
        for module, mode in modes.items():
            module.training = mode


def difference(
    got: torch.Tensor, expected: torch.Tensor, model: PreTrainedModel, whole: float = 1e-4, half: float = 1e-2
) -> str:
    """How far two results of a model are apart; empty if that may be rounding: `whole` of the largest value,
    or `half` of it in 16 bits and where linears round their inputs.
    """
    off, largest = (got - expected).abs().max().item(), expected.abs().max().item()
    exact = model.dtype in (torch.float32, torch.float64) and not rounds_inputs(model)
    tolerance = whole if exact else half
    return "" if off <= largest * tolerance else f"off by up to {off:.1e}, the largest being {largest:.1e}"
