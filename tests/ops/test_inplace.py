"""What torch expects of ops that change tensors: counted versions, no lost gradient, no shared memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from helpers import assert_same_bits
from op_calls import COEFFS, DIFFERENTIABLE, OPS, PAIRS, SEEDS, WRITTEN, named, sharing, torch_op

from mobizo_kernels import ops


@pytest.mark.parametrize("op", OPS)
def test_every_change_is_counted(op: str) -> None:
    case = OPS[op]
    tensors = case.given()
    before = {name: tensor._version for name, tensor in tensors.items()}
    case.call(torch_op(op), **tensors)
    for name, tensor in tensors.items():
        assert (tensor._version > before[name]) == (name in case.written), name


@pytest.mark.parametrize("op", OPS)
def test_views_are_counted_with_their_base(op: str) -> None:
    """And are changed where they are, gaps left alone."""
    case = OPS[op]
    tensors = case.given()
    holder = torch.full((9, 2 * tensors[case.written[0]].shape[-1]), 7.0)
    view = holder[1 : 1 + 2 * 4 : 2, ::2] if tensors[case.written[0]].dim() == 2 else holder[1, ::2]
    tensors[case.written[0]] = view.fill_(1)
    before = holder._version
    case.call(torch_op(op), **tensors)
    assert holder._version > before
    assert bool((holder[::2] == 7).all())


def test_a_value_saved_for_backward_is_missed() -> None:
    weight = torch.ones(4, requires_grad=True)
    value = weight * 2
    squared = value * value
    with torch.no_grad():
        ops.perturb_(value, SEEDS, COEFFS, 3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        squared.sum().backward()


@pytest.mark.parametrize(("op", "name"), DIFFERENTIABLE)
@pytest.mark.parametrize("leaf", [True, False], ids=["leaf", "result"])
def test_a_gradient_is_not_lost(op: str, name: str, leaf: bool) -> None:
    case = OPS[op]
    tensors = case.given()
    tensors[name] = tensors[name].requires_grad_() if leaf else tensors[name].requires_grad_() * 1
    values = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    with pytest.raises(RuntimeError, match=f"{named(name)} requires a gradient, .*no_grad"):
        case.call(torch_op(op), **tensors)
    for key, tensor in tensors.items():
        assert torch.equal(tensor.detach(), values[key])
    with torch.no_grad():
        case.call(torch_op(op), **tensors)
    assert not torch.equal(tensors[case.written[0]].detach(), values[case.written[0]])


@pytest.mark.parametrize(("op", "name"), WRITTEN)
def test_tensors_of_inference_mode(op: str, name: str) -> None:
    """Are changed in inference mode only, as by torch's own ops."""
    case = OPS[op]
    tensors = case.given()
    with torch.inference_mode():
        tensors[name] = tensors[name].clone()
        before = tensors[name].clone()
    with pytest.raises(RuntimeError, match=f"{named(name)} may not be changed in place: .* inference mode"):
        case.call(torch_op(op), **tensors)
    assert torch.equal(tensors[name], before)
    with torch.inference_mode():
        case.call(torch_op(op), **tensors)
    assert not torch.equal(tensors[name], before)


@pytest.mark.parametrize(("op", "written", "other"), PAIRS)
def test_shared_memory_is_refused(op: str, written: str, other: str) -> None:
    tensors, message = sharing(op, written, other)
    values = {name: tensor.clone() for name, tensor in tensors.items()}
    with pytest.raises(RuntimeError, match=message):
        OPS[op].call(torch_op(op), **tensors)
    for name, tensor in tensors.items():
        assert torch.equal(tensor, values[name])


def random_lora(rng: torch.Generator, rows: int = 130, width: int = 48) -> dict[str, torch.Tensor]:
    sizes = {"base": (rows, width), "x": (rows, width), "lora_a": (4, width), "lora_b": (width, 4)}
    tensors = {name: torch.randn(size, generator=rng) for name, size in sizes.items()}
    return {**tensors, "seeds": SEEDS, "coeffs": COEFFS}


@pytest.mark.parametrize("same", ["base", "x", "both"])
def test_mp_lora_may_write_what_it_reads(same: str, rng: torch.Generator) -> None:
    """Element by element: `out` as `base`, `x` or both."""
    tensors = random_lora(rng)
    if same == "both":
        tensors["x"] = tensors["base"]
    expected = torch.ops.mobizo.mp_lora(*tensors.values(), 0.5, 7)
    out = tensors["base" if same == "both" else same]
    assert_same_bits(torch.ops.mobizo.mp_lora.out(*tensors.values(), 0.5, 7, out=out), expected)


def test_mp_lora_in_place_on_x(rng: torch.Generator) -> None:
    tensors = random_lora(rng)
    tensors["x"] = tensors["base"]
    expected = ops.mp_lora(*tensors.values(), 0.5, 7)
    assert_same_bits(ops.mp_lora_(*tensors.values(), 0.5, 7), expected)


def test_x_shifted_by_a_row_is_refused(rng: torch.Generator) -> None:
    hidden, rest = torch.randn(131, 48, generator=rng), list(random_lora(rng).values())[2:]
    for base, x in ((hidden[1:], hidden[:-1]), (hidden[:-1], hidden[1:])):
        with pytest.raises(RuntimeError, match="base and x must not share memory"):
            ops.mp_lora_(base, x, *rest, 0.5, 7)


FUSED: dict[str, Callable[[torch.Tensor], list[torch.Tensor]]] = {
    "rows": lambda w: [w[:5], w[5:6], w[6:]],
    "columns": lambda w: [w[:, :3], w[:, 3:4], w[:, 4:]],
    "every-other-row": lambda w: [w[::2], w[1::2]],
    "every-other-column": lambda w: [w[:, ::2], w[:, 1::2]],
    "heads": lambda w: list(w.view(12, 2, 4).unbind(1)),
    "transposed": lambda w: [w.t()[:3], w.t()[3:]],
    "corners": lambda w: [w[:5, :3], w[:5, 3:], w[5:, :3], w[5:, 3:]],
    "empty": lambda w: [w, w[:0], w[3:3]],
}


@pytest.mark.parametrize("parts", FUSED)
def test_parts_of_one_tensor_are_apart(parts: str, rng: torch.Generator) -> None:
    """Views that interleave but share no element are parameters like others."""
    weight = torch.randn(12, 8, generator=rng)
    views = FUSED[parts](weight)
    copies = [view.clone() for view in views]
    streams = list(range(len(views)))
    ops.foreach_perturb_(copies, SEEDS, COEFFS, streams)
    ops.foreach_perturb_(views, SEEDS, COEFFS, streams)
    for view, copy in zip(views, copies, strict=True):
        assert_same_bits(view.clone(), copy)


def test_parts_that_overlap_are_refused(rng: torch.Generator) -> None:
    weight = torch.randn(12, 8, generator=rng)
    for parts in ([weight[:5], weight[4:]], [weight[:, :4], weight[:, 3:]], [weight, weight[11:, 7:]]):
        for order in (parts, parts[::-1]):
            before = weight.clone()
            with pytest.raises(RuntimeError, match=r"self\[0\] and self\[1\] must not share memory"):
                ops.foreach_perturb_(order, SEEDS, COEFFS, [1, 2])
            assert torch.equal(weight, before)


FORK = """
import os, torch
from mobizo_kernels import ops
torch.set_num_threads(3)
seeds, coeffs = torch.tensor([1, 2]), torch.tensor([0.5, -0.25])
given = [torch.ones(s) for s in ((64, 512), (64, 128), (8, 128), (512, 8))]
params = [torch.zeros(300_000) for _ in range(2)]
norm = torch.zeros(1)

def run(param, base):
    ops.perturb_(param, seeds, coeffs, 1)
    ops.foreach_perturb_([param[:200_000], param[200_000:]], seeds, coeffs, [2, 3])
    torch.ops.mobizo.zo_update.out(param, seeds, coeffs, 4, out=norm)
    ops.mp_lora_(base, *given[1:], seeds, coeffs, 0.5, 5)

bases = [given[0].clone() for _ in range(2)]
run(params[0], bases[0])
child = os.fork()
if child == 0:
    run(params[1], bases[1])
    same = all((a.numpy() == b.numpy()).all() for a, b in (params, bases))
    os._exit(0 if same else 7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_uses_one_thread() -> None:
    """Where the threads of torch's pool are missing, with the same bits."""
    done = subprocess.Popen(
        [sys.executable, "-c", FORK], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        output, _ = done.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(done.pid, signal.SIGKILL)
        done.wait()
        pytest.fail("the child hangs", pytrace=False)
    assert output == "0\n"
