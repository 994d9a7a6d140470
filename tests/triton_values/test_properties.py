"""What holds for all inputs of the updates in Triton: the examples of tests/ops/test_properties.py, fewer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from op_properties import Call, Shape, assert_is_the_twin, calls
from update_ops import UPDATES, UpdateOp

# Few blocks: an interpreter takes its time for each.
SHAPES: st.SearchStrategy[Shape] = st.lists(st.integers(0, 9), max_size=3).map(tuple) | st.just((2, 551))


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("update", UPDATES, ids=str)
@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_updates(update: UpdateOp, op: Callable, device: str, data: st.DataObject) -> None:
    tensors, arguments = data.draw(calls(update, SHAPES))
    # The interpreter hands a number of -0.0 on as 0.0.
    call = Call(tensors, tuple(one + 0.0 if isinstance(one, float) else one for one in arguments))

    def run(*given: object) -> None:
        there = [one.to(device) if isinstance(one, torch.Tensor) else one for one in given]
        op(update.name)(*there)
        for tensor, moved in zip(call.tensors, there, strict=False):
            tensor.copy_(moved)  # the same tensor in an interpreter

    assert_is_the_twin(update, call, run)
