"""The schemas in csrc are the one declaration of the ops: what Python says of their arguments is the same."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any, get_type_hints

import pytest
import torch
from op_calls import OPS, torch_op
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from mobizo_kernels import ops, reference
from mobizo_kernels.ops.mp_lora import PerturbedAdapter

FACES = [name for name in ops.__all__ if name != "parameter_stream"]
TWINS = {"mp_outer": "mp_outer_"} | {
    name: name for name in ("mp_lora", "zo_adam", "zo_momentum", "zo_sign", "zo_update")
}
TWINS |= {"perturb": "perturb_", "foreach_perturb": "foreach_perturb_"}
TYPES = {
    "Tensor": torch.Tensor,
    "Optional[Tensor]": torch.Tensor | None,
    "List[Tensor]": Sequence[torch.Tensor],
    "List[int]": Sequence[int],
    "float": float,
    "int": int,
    "bool": bool,
    "str": str,
    "Optional[int]": torch.dtype | None,
}


def schema_of(name: str) -> list[Any]:
    return list(torch_op(name)._schema.arguments)


def documented(function: Any) -> set[str]:
    """The arguments that a docstring explains."""
    section = re.search(
        r"^Args:\n(.*?)^(Returns|Raises):", inspect.getdoc(function) or "", re.DOTALL | re.MULTILINE
    )
    assert section is not None
    return set(", ".join(re.findall(r"^ {4}(\w+(?:, \w+)*):", section[1], re.MULTILINE)).split(", "))


@pytest.mark.parametrize("name", FACES)
def test_faces(name: str) -> None:
    """Names, defaults, types; torch calls self what is a parameter of a model here."""
    face, own = getattr(ops, name), {"perturb_": "param", "foreach_perturb_": "params"}.get(name)
    parameters, hints = inspect.signature(face).parameters.values(), get_type_hints(face)
    expected = [
        (
            own if argument.name == "self" else argument.name,
            argument.default_value if argument.has_default_value() else inspect.Parameter.empty,
            argument.kwarg_only,
            TYPES[str(argument.type)],
        )
        for argument in schema_of(name)
    ]
    assert expected == [(p.name, p.default, p.kind is p.KEYWORD_ONLY, hints[p.name]) for p in parameters]
    if name != "mp_lora_":  # which has the arguments of mp_lora
        assert documented(face) == {p.name for p in parameters}


@pytest.mark.parametrize("name", ["mp_lora", "mp_lora_", "mp_lora.out", "mp_lora_linear"])
def test_perturbed_adapter_ends_the_schema(name: str) -> None:
    positional = [argument for argument in schema_of(name) if not argument.kwarg_only]
    tail = positional[-len(PerturbedAdapter._fields) :]
    assert tuple(argument.name for argument in tail) == PerturbedAdapter._fields
    assert PerturbedAdapter._field_defaults == {"distribution": tail[-1].default_value}


@pytest.mark.parametrize(("twin", "op"), TWINS.items())
def test_twins(twin: str, op: str) -> None:
    given, expected = (inspect.signature(f).parameters for f in (getattr(reference, twin), getattr(ops, op)))
    assert dict(given) == dict(expected)


@pytest.mark.parametrize("name", OPS)
def test_fakes_of_calls_by_name(name: str) -> None:
    """torch hands a fake its arguments in their places, and leaves defaults out, however the op is called."""
    given: dict[str, Any] = {}

    def keep(*args: Any, **options: Any) -> None:
        given.update(zip((argument.name for argument in schema_of(name)), args, strict=False), **options)

    OPS[name].call(keep, **OPS[name].given())
    with FakeTensorMode() as mode:
        fake = tree_map_only(torch.Tensor, mode.from_tensor, given)
        got = torch_op(name)(**fake)
        if name != "mp_outer_":  # which has one distribution
            with pytest.raises(RuntimeError, match=f"mobizo::{name.partition('.')[0]}: distribution must be"):
                torch_op(name)(**fake, distribution="cauchy")
    expected = torch_op(name)(**given)
    assert (got is None) == (expected is None)
    assert expected is None or (got.shape, got.dtype) == (expected.shape, expected.dtype)
