"""Where in a decoder the adapters begin: what is below is the same for all groups of rows."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn
from transformers import PreTrainedModel


def layers_from_first_adapted(
    model: PreTrainedModel, adapted: Collection[nn.Module]
) -> tuple[list[nn.Module], int]:
    """The layers of a decoder in their order, and the first of them with one of `adapted` in it.

    Args:
        model: a causal LM of transformers.
        adapted: modules with an adapter, of layers or the LM head.

    Returns:
        The layers, and an index into them; their number if no layer is adapted.

    Raises:
        ValueError: if the layers are not found, or something is adapted that is neither in them nor the head.
    """
    count = model.config.get_text_config().num_hidden_layers
    lists = {
        path: module
        for path, module in model.base_model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    }
    if not lists:
        raise ValueError(f"{type(model).__name__} has no list of its {count} layers")
    layers = list(lists[min(lists, key=len)])
    wanted, head = {id(module) for module in adapted}, model.get_output_embeddings()
    inside = [sum(id(module) in wanted for module in layer.modules()) for layer in layers]
    if sum(inside) + (id(head) in wanted) != len(wanted):
        raise ValueError(f"{type(model).__name__} has adapters outside of its layers")
    return layers, next((index for index, found in enumerate(inside) if found), count)
