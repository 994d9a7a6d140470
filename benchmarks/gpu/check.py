"""Whether the ops of a device are right: against known answers, numpy, float64 and the CPU.

Kernels are compiled as they are first called, which takes longer than all comparisons; so the checks of each
dtype run in a process of their own, and what they compile is found by whoever calls the same kernel later.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

import peft
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import mobizo_kernels as mobizo
from mobizo_kernels import ops, reference
from mobizo_kernels.ops.checks import DISTRIBUTIONS, STORAGE_DTYPES
from mobizo_kernels.optim import query_seeds
from mobizo_kernels.zo import tuned_parameters

SIZES = ((1,), (130,), (4099,), (13, 10), (40, 96), (3, 5, 129), (1, 4100))
SHAPES = ((6, 33, 65, 4, 3), (130, 64, 128, 16, 2), (96, 72, 40, 5, 16), (64, 48, 96, 96, 1))
FUSED_SHAPE = (8000, 136, 264, 16, 8)  # with x and A of one 16-bit dtype: one kernel on Hopper
STREAM = -5
KNOWN_ANSWERS = Path(__file__).resolve().parents[2] / "tests/support/noise_vectors.json"
LARGEST_KNOWN = 1 << 20  # elements of known answers beyond it would take gigabytes

Comparisons = Iterator[tuple[str, bool]]
Task = tuple[str, str, torch.dtype, str]


def check(name: str, device: torch.device) -> tuple[int, list[str]]:
    """Run the check `name`, a key of `CHECKS`: the number of comparisons made, and what is wrong."""
    kinds = product(STORAGE_DTYPES[:1] if name == "step" else STORAGE_DTYPES, DISTRIBUTIONS)
    tasks: list[Task] = [(name, str(device), dtype, distribution) for dtype, distribution in kinds]
    processes = min(len(tasks), os.cpu_count() or 1) if device.type == "cuda" else 1
    if processes == 1:
        found = list(map(_compared, tasks))
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            found = pool.map(_compared, tasks, chunksize=1)
    return sum(count for count, _ in found), [what for _, wrong in found for what in wrong]


def _compared(task: Task) -> tuple[int, list[str]]:
    name, device, dtype, distribution = task
    outcomes = list(CHECKS[name](torch.device(device), dtype, distribution))
    return len(outcomes), [what for what, right in outcomes if not right]


def known_answers(device: torch.device, distribution: str) -> Comparisons:
    """noise against the answers that every backend must give, by their bits."""
    if distribution == "outer":
        for seed, stream, rows, columns, element, bits in json.loads(KNOWN_ANSWERS.read_text())[distribution]:
            matrix = [int(rows), int(columns)]
            got = ops.noise(matrix, _signed(seed).to(device), int(_signed(stream)), distribution)
            right = int(got.view(-1)[int(element)].view(torch.int32)) & 0xFFFFFFFF == int(bits, 16)
            yield f"noise (outer, seed {seed}, stream {stream}, {rows}x{columns}, element {element})", right
        return
    for seed, stream, element, bits in json.loads(KNOWN_ANSWERS.read_text())[distribution]:
        if int(element) < LARGEST_KNOWN:
            got = ops.noise([int(element) + 1], _signed(seed).to(device), int(_signed(stream)), distribution)
            right = int(got[-1:].view(torch.int32)) & 0xFFFFFFFF == int(bits, 16)
            yield f"noise ({distribution}, seed {seed}, stream {stream}, element {element})", right


def _signed(pattern: str) -> torch.Tensor:
    """The int64 of 64 bits in hexadecimal."""
    return torch.tensor(int(pattern, 16) - (int(pattern, 16) >> 63 << 64))


def updates(device: torch.device, dtype: torch.dtype, distribution: str) -> Comparisons:
    """noise, perturb_, foreach_perturb_ and zo_update, each to the bit."""
    if dtype == torch.float32:
        yield from known_answers(device, distribution)
    seeds, coeffs = torch.tensor([7, -1, 2**63 - 1]), torch.tensor([0.5, -1.25, 3e-3])
    on_device = seeds.to(device), coeffs.to(device)
    described, params, expected = f"{dtype}, {distribution}", [], []
    for size in SIZES:
        z = torch.from_numpy(reference.noise(size, -1, STREAM, distribution)).to(dtype)
        got = ops.noise(size, on_device[0][1], STREAM, distribution, dtype=dtype)
        yield f"noise ({described}, {size})", torch.equal(got.cpu(), z)
        before = torch.randn(size).to(dtype)
        args = (STREAM, 0.75, distribution)
        wanted, norm = reference.zo_update(before, seeds, coeffs, *args)
        param = ops.perturb_(before.to(device, copy=True), *on_device, *args)
        yield f"perturb_ ({described}, {size})", torch.equal(param.cpu(), wanted)
        param = before.to(device, copy=True)
        change = ops.zo_update(param, *on_device, *args).item()
        right = torch.equal(param.cpu(), wanted) and abs(change - norm) <= 1e-4 * norm
        yield f"zo_update ({described}, {size})", right
        params.append(before.to(device, copy=True))
        expected.append(wanted)
    ops.foreach_perturb_(params, *on_device, [STREAM] * len(params), 0.75, distribution)
    right = all(torch.equal(p.cpu(), wanted) for p, wanted in zip(params, expected, strict=True))
    yield f"foreach_perturb_ ({described})", right


def optimizers(device: torch.device, dtype: torch.dtype, distribution: str) -> Comparisons:
    """zo_momentum, zo_adam, zo_sign and their foreach forms, each to the bit in parameter and state."""
    seeds, coeffs = torch.tensor([7, -1, 2**63 - 1]), torch.tensor([0.5, -1.25, 3e-3])
    lr = torch.tensor([0.1])
    numbers: dict[str, tuple[int, dict[str, float | torch.Tensor]]] = {
        "zo_momentum": (1, {"beta": 0.9}),
        "zo_adam": (2, {"lr": lr, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}),
        "zo_sign": (0, {"lr": lr}),
    }
    for name, (states, given) in numbers.items():
        call = {"seeds": seeds, "coeffs": coeffs, **given, "decay": 0.75, "distribution": distribution}
        moved = {k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in call.items()}
        before = [[torch.randn(s).to(dtype), *(torch.rand(s) for _ in range(states))] for s in SIZES]
        stepped = [getattr(reference, name)(*tensors, **call, stream=STREAM) for tensors in before]
        lists = [[tensor.to(device, copy=True) for tensor in column] for column in zip(*before, strict=True)]
        getattr(ops, f"foreach_{name}_")(*lists, **moved, streams=[STREAM] * len(SIZES))
        rows = zip(SIZES, before, stepped, zip(*lists, strict=True), strict=True)
        for size, tensors, (*expected, norm), from_foreach in rows:
            got = [tensor.to(device, copy=True) for tensor in tensors]
            change = getattr(ops, name)(*got, **moved, stream=STREAM).item()
            for form, results in ((name, got), (f"foreach_{name}_", from_foreach)):
                right = all(torch.equal(a.cpu(), b) for a, b in zip(results, expected, strict=True))
                yield f"{form} ({dtype}, {distribution}, {size})", right
            yield f"the norm of {name} ({dtype}, {distribution})", abs(change - norm) <= 1e-4 * norm


def adapters(device: torch.device, dtype: torch.dtype, distribution: str) -> Comparisons:
    """mp_lora, mp_lora_ and mp_lora_linear against the float64 reference."""
    for shape in SHAPES if dtype == torch.float32 else (*SHAPES, FUSED_SHAPE):
        rows, in_features, out_features, rank, groups = shape
        base, x = torch.randn(rows, out_features).to(dtype), torch.randn(rows, in_features).to(dtype)
        weight = (torch.randn(out_features, in_features) / in_features**0.5).to(dtype)
        a, b = torch.randn(rank, in_features) / in_features**0.5, torch.randn(out_features, rank)
        a = a.to(dtype) if shape == FUSED_SHAPE else a
        seeds, coeffs = torch.arange(groups) - 1, torch.randn(groups)
        tail = (a, b, seeds, coeffs, 0.5, STREAM, distribution)
        moved = [t.to(device) if isinstance(t, torch.Tensor) else t for t in tail]
        described = f"({dtype}, {distribution}, {'x'.join(map(str, shape))})"
        expected, size = _reference(base, x, tail)
        tolerance = _tolerance(size, in_features + rank, dtype)
        calls: dict[str, Callable[[], torch.Tensor]] = {
            "mp_lora": lambda t=moved, y=base, u=x: ops.mp_lora(y.to(device), u.to(device), *t),
            "mp_lora_": lambda t=moved, y=base, u=x: ops.mp_lora_(y.to(device).clone(), u.to(device), *t),
        }
        for name, call in calls.items():
            yield f"{name} {described}", _close(call(), expected, tolerance)
        linear = x.double() @ weight.double().T
        expected, size = _reference(linear, x, tail)
        size = size + x.double().abs() @ weight.double().abs().T
        tolerance = 3 * _tolerance(size, in_features + rank, dtype)  # the base is rounded on its own
        got = ops.mp_lora_linear(x.to(device), weight.to(device), None, *moved)
        yield f"mp_lora_linear {described}", _close(got, expected, tolerance)


def steps(device: torch.device, dtype: torch.dtype, distribution: str) -> Comparisons:
    """A step of a tiny model in float32, ordinary and as a CUDA graph, against the CPU: losses, and B to the
    bit.
    """
    for graph in (False, True) if device.type == "cuda" else (False,):
        model, twin = _tiny_model(), _tiny_model().to(device)
        options = {"queries": 3, "lr": 0.1, "distribution": distribution}
        zo = mobizo.ZerothOrder(model, **options)
        other = mobizo.ZerothOrder(twin, **options, cuda_graph=graph)
        for step in range(3):  # the third one replays a graph
            tokens = torch.randint(3, 61, (4, 9))
            batch = {"input_ids": tokens, "labels": tokens}
            before = _adapters(twin)
            expected, got = zo.step(batch), other.step(batch)
            coeffs = other.optimizer.record(got.projected_grads).coeffs
            _put_back(model, before)
            zo.optimizer.perturb(query_seeds(0, step, 3), coeffs)
            # Losses differ in their last bits, and so do gradients; the update follows from the gradients.
            right = torch.allclose(got.losses, expected.losses, rtol=1e-3)
            right &= all(torch.equal(a, b) for a, b in zip(_adapters(model), _adapters(twin), strict=True))
            yield f"a step (cuda_graph={graph})", right


def _reference(
    base: torch.Tensor, x: torch.Tensor, tail: tuple[torch.Tensor | float | int | str, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The float64 result, and the same sums over absolute values, by which its error is measured."""
    a, b, seeds, coeffs, scaling, stream, distribution = tail
    expected = reference.mp_lora(base, x, a, b, seeds, coeffs, scaling, stream, distribution)
    stack = reference.stack_b(b, seeds, coeffs, stream, distribution).double().abs()
    size = reference.mp_lora_stacked(base.double().abs(), x.double().abs(), a.double().abs(), stack, scaling)
    return expected, size


def _tolerance(size: torch.Tensor, terms: int, dtype: torch.dtype) -> torch.Tensor:
    """The error of sums of `terms` products in float32 (Higham, section 3.1), rounded once to `dtype`."""
    return (terms + 8) * 2.0**-24 * size + torch.finfo(dtype).eps * size * (dtype != torch.float32)


def _close(got: torch.Tensor, expected: torch.Tensor, tolerance: torch.Tensor) -> bool:
    return bool(((got.cpu().double() - expected).abs() <= tolerance).all())


def _tiny_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)).eval()
    return mobizo.wrap(model, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))


def _adapters(model: torch.nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().cpu().clone() for _, parameter in tuned_parameters(model)]


def _put_back(model: torch.nn.Module, values: list[torch.Tensor]) -> None:
    for (_, parameter), value in zip(tuned_parameters(model), values, strict=True):
        parameter.data.copy_(value)


CHECKS: dict[str, Callable[[torch.device, torch.dtype, str], Comparisons]] = {
    "updates": updates,
    "optimizers": optimizers,
    "adapters": adapters,
    "step": steps,
}
