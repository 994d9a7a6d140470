"""The ops on a GPU against what users have today and against a copy of the same bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
import torch.nn.functional as F

from benchmarks.cpu.bench_mp_lora import EPS, SCALING, Layer, check, make_layer
from benchmarks.cpu.bench_zo_optimizers import OPTIMIZERS, Problem
from benchmarks.gpu import predictions, roofline
from benchmarks.gpu.models import SIZES, SMALL, parameter_shapes
from benchmarks.gpu.report import GpuReport
from benchmarks.gpu.timing import Stopwatch
from benchmarks.harness import Timing, Variant, dtype_name, fastest
from benchmarks.peers import MaterialisedNoise, make_stack_, mezo_perturb_
from mobizo_kernels import ops
from mobizo_kernels.ops.checks import DISTRIBUTIONS, STORAGE_DTYPES
from mobizo_kernels.triton import mp_lora_linear

RANK, SEQUENCES = 16, 32
COLUMNS = 4096  # of a single tensor
COEFF = 1e-6
ADAPTED = {"TinyLlama-1.1B": [(2048, RANK), (256, RANK)] * 22}  # B of q_proj and v_proj in every layer
# In and out features: attention, keys and values, the feed-forward part.
LAYERS = {
    "TinyLlama-1.1B": ((2048, 2048), (2048, 256), (2048, 5632), (5632, 2048)),
    "Llama-2-7B": ((4096, 4096), (4096, 11008), (11008, 4096)),
}
LINEAR_GOALS = {"TinyLlama-1.1B": 1.10, "Llama-2-7B": 1.05}
BANDWIDTH_GOALS = {
    ("float32", "gaussian"): 0.80,
    ("bfloat16", "gaussian"): 0.60,
    ("float32", "rademacher"): 0.90,
}


@dataclass(frozen=True)
class Extent:
    """How much is measured."""

    values: int
    lengths: tuple[int, ...]
    queries: tuple[int, ...]
    layers: dict[str, tuple[tuple[int, int], ...]]


FULL = Extent(1 << 26, (64, 128, 256), (1, 4, 16), LAYERS)
QUICK = Extent(1 << 24, (64,), (1, 16), {name: shapes[:1] for name, shapes in LAYERS.items()})
TINY = Extent(1 << 12, (2,), (1, 4), {"TinyLlama-1.1B": ((64, 48),), "Llama-2-7B": ((48, 80),)})


def noise(report: GpuReport, watch: Stopwatch, extent: Extent) -> None:
    """Table `noise`: one tensor far larger than any cache."""
    device, values = watch.device, extent.values
    seed = torch.ones((), dtype=torch.int64, device=device)
    table = report.table("noise", "ns per value; of the speed of filling the same tensor; times torch's")
    for dtype, distribution in product((torch.float32, torch.bfloat16), DISTRIBUTIONS):
        out = torch.empty(values // COLUMNS, COLUMNS, dtype=dtype, device=device)
        own = partial(out.normal_) if distribution == "gaussian" else partial(out.random_, 0, 2)
        calls: dict[str, list[Variant]] = {
            "noise": [partial(_noise_into, out, seed, distribution)],
            "torch": [own],
            "fill": [partial(out.fill_, 1.0)],
        }
        timings = watch.time(calls)
        table.add(
            {"values": values, "dtype": dtype_name(dtype), "distribution": distribution},
            timings,
            {"ns": timings["noise"].show(1e9 / values), **_shares(timings, "noise", "fill", "torch")},
        )
        work = roofline.noise(values, dtype_name(dtype), distribution)
        predictions.compare(report, work, timings["noise"].p50)


def perturbations(report: GpuReport, watch: Stopwatch, extent: Extent) -> None:
    """Table `perturb_`: one tensor far larger than any cache."""
    device, values = watch.device, extent.values
    seeds, coeffs = torch.arange(4, device=device), torch.full((4,), COEFF, device=device)
    caption = "ns per value and seed; of the speed of a copy; times MeZO's materialised noise"
    table = report.table("perturb_", caption)
    dtypes = STORAGE_DTYPES
    for count, dtype, distribution in product((1, 4), dtypes, DISTRIBUTIONS):
        param = torch.zeros(values // COLUMNS, COLUMNS, dtype=dtype, device=device)
        target, kept = torch.empty_like(param), MaterialisedNoise([param])
        some = (seeds[:count], coeffs[:count], 5, 1.0, distribution)
        draw = kept.add_gaussian if distribution == "gaussian" else kept.add_rademacher
        calls: dict[str, list[Variant]] = {
            "perturb_": [partial(ops.perturb_, param, *some)],
            "zo_update": [partial(ops.zo_update, param, *some)],
            "copy": [partial(target.copy_, param)],
            "public": [_repeated(count, partial(mezo_perturb_, [param], COEFF))],
            "kept": [_repeated(count, partial(draw, COEFF))],
        }
        timings = watch.time(calls)
        share, name = timings["copy"].p50 / timings["perturb_"].p50, dtype_name(dtype)
        case = {"values": values, "dtype": name, "distribution": distribution, "seeds": count}
        shares = _shares(timings, "perturb_", "copy", fastest(timings, ("public", "kept")))
        times = {"ns": timings["perturb_"].show(1e9 / values / count)}
        own = {"zo_update of copy": timings["copy"].p50 / timings["zo_update"].p50}
        table.add(case, timings, {**times, **shares, **own})
        if dtype != torch.float16:
            work = roofline.update(f"perturb_ by {count}", values, name, distribution, count)
            predictions.compare(report, work, timings["perturb_"].p50)
        goal = BANDWIDTH_GOALS.get((name, distribution))
        if goal is not None and count == 1:
            report.goal(f"perturb_ {name} {distribution}, of a copy", share, at_least=goal)
        if dtype == torch.float32:
            rate = 2 * values * dtype.itemsize / timings["copy"].p50
            what = "bytes a second, of a copy in float32"
            predictions.assume(report, what, predictions.ASSUMED.bandwidth, rate)
        if dtype == torch.float32 and distribution == "gaussian" and count > 1:
            # Noise takes three times as long as memory here, and the launch no time to speak of.
            rate = count * values * roofline.INSTRUCTIONS[distribution] / timings["perturb_"].p50
            what = f"instructions a second, perturb_ by {count} Gaussian directions"
            predictions.assume(report, what, predictions.ASSUMED.instructions, rate)


def optimizers(report: GpuReport, watch: Stopwatch, extent: Extent) -> None:
    """Table `optimizers`: one float32 tensor far larger than any cache, and its state."""
    device, values = watch.device, extent.values
    caption = "ns per value; of the speed of a copy of all that is written; times torch's"
    table = report.table("optimizers", caption)
    for count, optimizer, distribution in product((1, 4), OPTIMIZERS, DISTRIBUTIONS):
        with device:
            problem = Problem(optimizer, [(values // COLUMNS, COLUMNS)], count)
            every = problem.tensors()
            targets = [torch.empty_like(tensor) for tensor in every]
            calls: dict[str, list[Variant]] = {
                optimizer: [problem.our_step(distribution)],
                "torch": [problem.torch_step(distribution)],
                "copy": [partial(torch._foreach_copy_, targets, every)],
            }
        timings = watch.time(calls)
        table.add(
            {"optimizer": optimizer, "values": values, "distribution": distribution, "seeds": count},
            timings,
            {"ns": timings[optimizer].show(1e9 / values), **_shares(timings, optimizer, "copy", "torch")},
        )
        work = roofline.update(
            f"{optimizer} by {count}", values, "float32", distribution, count, len(every) - 1
        )
        predictions.compare(report, work, timings[optimizer].p50)


def every_adapter(report: GpuReport, watch: Stopwatch) -> None:
    """Table `foreach_perturb_`: all LoRA-B of a model, float32, by one launch."""
    caption = "us for every LoRA-B of a model; times MeZO's materialised noise"
    table = report.table("foreach_perturb_", caption)
    for count, (model, shapes), distribution in product((1, 4), ADAPTED.items(), DISTRIBUTIONS):
        size = 4 * sum(rows * columns for rows, columns in shapes)
        sets = [[torch.zeros(s, device=watch.device) for s in shapes] for _ in range(watch.copies(size))]
        seeds = torch.arange(count, device=watch.device)
        coeffs, streams = torch.full((count,), COEFF, device=watch.device), list(range(len(shapes)))
        some = (seeds, coeffs, streams, 1.0, distribution)
        kept = [MaterialisedNoise(params) for params in sets]
        source = [torch.zeros_like(param) for param in sets[0]]
        timings = watch.time(
            {
                "foreach_perturb_": [partial(ops.foreach_perturb_, params, *some) for params in sets],
                "public": [_repeated(count, partial(mezo_perturb_, params, COEFF)) for params in sets],
                "kept": [_repeated(count, partial(noise.add_gaussian, COEFF)) for noise in kept],
                "copy": [partial(torch._foreach_copy_, params, source) for params in sets],
            }
        )
        shares = _shares(timings, "foreach_perturb_", "copy", fastest(timings, ("public", "kept")))
        case = {"model": model, "tensors": len(shapes), "distribution": distribution, "seeds": count}
        table.add(case, timings, {"us": timings["foreach_perturb_"].show(1e6), **shares})
        if count == 1 and distribution == "gaussian":
            figure = 1e6 * timings["foreach_perturb_"].p50
            report.goal(f"foreach_perturb_ over every LoRA-B of {model}, us", figure, below=20.0)


def every_parameter(report: GpuReport, watch: Stopwatch) -> None:
    """Table `full parameters`: all 1.1 billion parameters of TinyLlama by one launch, in place."""
    model = "TinyLlama-1.1B"
    on_gpu = watch.device.type == "cuda"
    shapes = parameter_shapes(SIZES[model] if on_gpu else SMALL)
    caption = "ms for every parameter; of a copy's speed; times MeZO's torch.normal"
    table = report.table("full parameters", caption)
    for dtype, distribution in product((torch.float32, torch.bfloat16), DISTRIBUTIONS):
        params = [torch.zeros(shape, dtype=dtype, device=watch.device) for shape in shapes]
        source = [torch.zeros_like(param) for param in params]
        seeds, coeffs = (t.to(watch.device) for t in (torch.arange(1), torch.full((1,), COEFF)))
        some = (seeds, coeffs, list(range(len(params))), 1.0, distribution)
        timings = watch.time(
            {
                "foreach_perturb_": [partial(ops.foreach_perturb_, params, *some)],
                "public": [partial(mezo_perturb_, params, COEFF)],
                "copy": [partial(torch._foreach_copy_, params, source)],
            }
        )
        case = {
            "model": model,
            "parameters": sum(map(torch.Tensor.numel, params)),
            "dtype": dtype_name(dtype),
        }
        shares = _shares(timings, "foreach_perturb_", "copy", "public")
        times = {"ms": timings["foreach_perturb_"].show(1e3)}
        table.add({**case, "distribution": distribution}, timings, {**times, **shares})
        what = f"perturb_ of all of {model}"
        work = roofline.update(what, int(case["parameters"]), dtype_name(dtype), distribution)
        predictions.compare(report, work, timings["foreach_perturb_"].p50)
        goal = BANDWIDTH_GOALS.get((dtype_name(dtype), distribution))
        if goal is not None:
            what = f"all parameters, {dtype_name(dtype)} {distribution}, of a copy"
            report.goal(what, shares["of copy"], at_least=goal)
        del params, source, timings
        if on_gpu:
            torch.cuda.empty_cache()


def linear_shapes(extent: Extent) -> Iterator[tuple[str, tuple[int, int], int, int]]:
    """Model, in and out features, T and q of every linear that is measured, the most telling first."""
    middle = (extent.lengths[len(extent.lengths) // 2], extent.queries[len(extent.queries) // 2])
    for model, shapes in extent.layers.items():
        for shape in shapes:
            yield model, shape, *middle
    for model, shapes in extent.layers.items():
        for setting in product(extent.lengths, extent.queries):
            if setting != middle:
                yield model, shapes[0], *setting


def linears(report: GpuReport, watch: Stopwatch, extent: Extent) -> None:
    """Table `mp_lora_linear`: bfloat16, q queries on E = 16 = q B sequences, so 2 E = 32 in a forward."""
    dtype = torch.bfloat16 if watch.device.type == "cuda" else torch.float32
    worst: dict[str, float] = {}
    for model, shape, length, queries in linear_shapes(extent):
        ratio = _linear(report, watch, model, shape, length, queries, dtype)
        worst[model] = max(worst.get(model, 0.0), ratio)
        goal = f"mp_lora_linear / F.linear, {model}, worst"
        report.goal(goal, worst[model], below=LINEAR_GOALS[model])


def _linear(
    report: GpuReport,
    watch: Stopwatch,
    model: str,
    shape: tuple[int, int],
    length: int,
    queries: int,
    dtype: torch.dtype,
) -> float:
    """Add one row; mp_lora_linear / F.linear."""
    rows, groups, (in_features, out_features) = SEQUENCES * length, 2 * queries, shape
    size = (rows * (in_features + out_features) + in_features * out_features) * dtype.itemsize
    with watch.device:
        layers = [make_layer(s, rows, *shape, RANK, groups, dtype) for s in range(watch.copies(size))]
    check(layers[0])
    source = torch.empty(size // 2, dtype=torch.uint8, device=watch.device)
    target, room = torch.empty_like(source), torch.empty_like(layers[0].stack_t)
    noise, peer_b = torch.empty_like(room[:queries]), room[0].clone()
    # Without a GPU nothing is fused, but the program is the same.
    fused = mp_lora_linear.fused if watch.device.type == "cuda" else ops.mp_lora_linear

    def fused_linear(layer: Layer, coeffs: torch.Tensor) -> torch.Tensor:
        directions = (layer.seeds, coeffs, SCALING, layer.stream, layer.distribution)
        return fused(layer.x, layer.weight, None, layer.peer_a, layer.lora_b, *directions)

    calls: dict[str, Callable[[Layer], object]] = {
        "F.linear": lambda layer: F.linear(layer.x, layer.weight),
        "mp_lora_linear": Layer.mp_lora_linear,
        "mp_lora_": Layer.mp_lora,
        "mp_lora_, outer": lambda layer: replace(layer, distribution="outer").mp_lora(),
        "fused": lambda layer: fused_linear(layer, layer.coeffs),
        "fused, coefficients 0": lambda layer: fused_linear(layer, layer.zeros),
        "stacked [G, out, r]": Layer.stacked,
        "stacked [G, r, out]": Layer.stacked_t,
    }
    variants: dict[str, list[Variant]] = {
        name: [partial(call, layer) for layer in layers] for name, call in calls.items()
    }
    variants["make stack"] = [lambda: make_stack_(room, noise, peer_b, EPS)]
    variants["copy"] = [lambda: target.copy_(source)]
    timings = watch.time(variants)
    limit = timings["F.linear"].p50
    stacked = timings[fastest(timings, ("stacked [G, out, r]", "stacked [G, r, out]"))].p50
    ratio = timings["mp_lora_linear"].p50 / limit
    case = {"model": model, "in": in_features, "out": out_features, "T": length, "q": queries, "rows": rows}
    report.table("mp_lora_linear", "us of F.linear; how many times as long the others take").add(
        case,
        timings,
        {
            "F.linear us": timings["F.linear"].show(1e6),
            "mp_lora_linear": ratio,
            "mp_lora_": timings["mp_lora_"].p50 / limit,
            "mp_lora_, outer": timings["mp_lora_, outer"].p50 / limit,
            "fused": timings["fused"].p50 / limit,
            "stacked": stacked / limit,
            "stacked, made": (stacked + timings["make stack"].p50) / limit,
            "copy": timings["copy"].p50 / limit,
        },
    )
    what = f"{model} {in_features} to {out_features}, q = {queries}"
    predictions.compare(report, roofline.linear(what, rows, *shape), limit)
    added = predictions.shrink_and_expand(what, rows, groups, *shape, RANK)
    predictions.compare(report, added, timings["mp_lora_"].p50 - limit)
    times = [timings[name].p50 for name in ("F.linear", "mp_lora_", "fused", "fused, coefficients 0")]
    predictions.choice(report, case, (rows, groups, *shape, RANK), *times)
    rate = 2.0 * rows * in_features * out_features / limit
    what = f"operations a second, F.linear of {model}, {rows} rows, {in_features} to {out_features}"
    predictions.assume(report, what, predictions.OPERATIONS, rate)
    return ratio


def _noise_into(out: torch.Tensor, seed: torch.Tensor, distribution: str) -> torch.Tensor:
    return torch.ops.mobizo.noise.out(list(out.shape), seed, 5, distribution, dtype=out.dtype, out=out)


def _repeated(times: int, once: Variant) -> Variant:
    return lambda: [once() for _ in range(times)]


def _shares(timings: dict[str, Timing], name: str, limit: str, peer: str) -> dict[str, float]:
    own = timings[name].p50
    return {f"of {limit}": timings[limit].p50 / own, "x peer": timings[peer].p50 / own}
