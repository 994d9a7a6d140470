"""What torch expects of ops that change tensors, of the Triton kernels."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from op_calls import COEFFS, OPS, PAIRS, SEEDS, named, sharing


@pytest.mark.parametrize("name", OPS)
def test_changes_are_counted_and_gradients_not_lost(name: str, op: Callable, device: str) -> None:
    case = OPS[name]
    tensors = {key: tensor.to(device) for key, tensor in case.given().items()}
    before = {key: tensor._version for key, tensor in tensors.items()}
    case.call(op(name), **tensors)
    for key, tensor in tensors.items():
        assert (tensor._version > before[key]) == (key in case.written), key
    for key, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        values = {k: t.clone() for k, t in tensors.items()}
        with pytest.raises(RuntimeError, match=f"{named(key)} requires a gradient"):
            case.call(op(name), **{**tensors, key: tensor.detach().requires_grad_()})
        assert all(torch.equal(t, values[k]) for k, t in tensors.items())


@pytest.mark.parametrize("name", OPS)
def test_tensors_of_inference_mode(name: str, op: Callable, device: str) -> None:
    case = OPS[name]
    tensors = {key: tensor.to(device) for key, tensor in case.given().items()}
    with torch.inference_mode():
        inside = {key: tensor.clone() for key, tensor in tensors.items()}
        case.call(op(name), **inside)
        inside = {key: tensor.clone() for key, tensor in tensors.items()}
    for key in case.written:
        with pytest.raises(
            RuntimeError, match=f"{named(key)} may not be changed in place: .* inference mode"
        ):
            case.call(op(name), **{**tensors, key: inside[key]})


@pytest.mark.parametrize(("name", "written", "other"), PAIRS)
def test_shared_memory_is_refused(name: str, written: str, other: str, op: Callable, device: str) -> None:
    tensors, message = sharing(name, written, other, device)
    values = {key: tensor.clone() for key, tensor in tensors.items()}
    with pytest.raises(RuntimeError, match=message):
        OPS[name].call(op(name), **tensors)
    assert all(torch.equal(tensor, values[key]) for key, tensor in tensors.items())


def test_parts_of_one_tensor_are_apart(op: Callable, device: str) -> None:
    """Views that interleave but share no element are parameters like others."""
    seeds, coeffs = SEEDS.to(device), COEFFS.to(device)
    weight = torch.zeros(12, 8, device=device)
    parts = [weight[:5, :3], weight[:5, 3:], *weight[5:].view(7, 2, 4).unbind(1)]
    op("foreach_perturb_")(parts, seeds, coeffs, [1, 2, 3, 4])
    assert bool((weight != 0).all())
    with pytest.raises(RuntimeError, match=r"self\[0\] and self\[1\] must not share memory"):
        op("foreach_perturb_")([weight[:, :4], weight[:, 3:]], seeds, coeffs, [1, 2])


@pytest.mark.parametrize("same", ["base", "x"])
def test_mp_lora_may_write_what_it_reads(same: str, op: Callable, device: str) -> None:
    rng = torch.Generator().manual_seed(3)
    sizes = {"base": (10, 20), "x": (10, 20), "lora_a": (4, 20), "lora_b": (20, 4)}
    tensors = {name: torch.randn(size, generator=rng).to(device) for name, size in sizes.items()}
    tensors |= {"seeds": SEEDS.to(device), "coeffs": COEFFS.to(device)}
    expected = op("mp_lora")(*tensors.values(), 0.5, 7)
    got = op("mp_lora.out")(*tensors.values(), 0.5, 7, out=tensors[same])
    assert torch.equal(got, expected)
