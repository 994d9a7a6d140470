"""What of a model cannot be exported, in one sentence: its architecture, the module and the reason."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def check_architecture(model: PreTrainedModel) -> None:
    """Raise ValueError for a decoder whose layers mix tokens otherwise than by softmax attention.

    A recurrence or a convolution over the tokens reads the padding before a row, and its transformers code
    goes through the tokens in ways that depend on their number.
    """
    if not isinstance(model, PreTrainedModel):
        raise ValueError(f"model must be a causal LM of transformers, got {type(model).__name__}")
    text = model.config.get_text_config()
    if not hasattr(text, "num_attention_heads"):
        raise cannot_be_exported(model, "its layers have no softmax attention")
    if hasattr(model.base_model, "build_alibi_tensor"):
        raise cannot_be_exported(model, "its ALiBi attention takes no mask of pairs of tokens")
    for name, module in model.base_model.named_modules():
        if isinstance(module, nn.Conv1d):
            raise cannot_be_exported(model, f"{name} is a convolution over the tokens")
    linear = [kind for kind in getattr(text, "layer_types", None) or () if "linear" in kind]
    if linear:
        raise cannot_be_exported(model, f"it has layers of the type {linear[0]}")


def cannot_be_exported(model: nn.Module, reason: object) -> ValueError:
    """The error for a model, with the first line of the reason.

    Args:
        model: the whole of it.
        reason: a sentence or, if a forward of the model failed, its exception: the innermost module of the
            model that it went through is named.
    """
    lines = str(reason).strip().splitlines() or [type(reason).__name__]
    where = _innermost(model, reason) if isinstance(reason, BaseException) else ""
    return ValueError(f"{type(model).__name__} cannot be exported: {where}{lines[0]}")


def _innermost(model: nn.Module, error: BaseException) -> str:
    names = {id(module): name for name, module in model.named_modules()}
    found, traceback = "", error.__traceback__
    while traceback is not None:
        module = traceback.tb_frame.f_locals.get("self")
        if name := names.get(id(module), ""):
            found = f"{name} ({type(module).__name__}): "
        traceback = traceback.tb_next
    return found
