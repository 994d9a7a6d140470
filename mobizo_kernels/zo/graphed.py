"""A whole step as one CUDA graph: forward of all groups, losses, projected gradients and update of B.

What changes from step to step lies in tensors that stay where they are: the graph reads them, and a step
writes them before it replays the graph. Nothing inside waits for the host, not even to find out whether a
loss is finite; the host reads losses and projected gradients when everything is done.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import nn
from transformers import masking_utils

from mobizo_kernels.lora import adapter_of, is_wrapped
from mobizo_kernels.loss import LabelledBatch, LabelledLoss
from mobizo_kernels.optim.base import ZOOptimizer
from mobizo_kernels.zo.estimators import Estimator

MOST_GRAPHS = 32
"""Graphs kept at a time, one for each shape of a batch; the one unused for longest goes first."""


class GraphedSteps:
    """Makes steps of a wrapped model without any work for the host between their first kernel and the last.

    The first step on a shape of batches runs as it is, which compiles and tunes its kernels; the second one
    captures the graph. Batches of one shape have equal sizes up to the last prediction of the longest row,
    and as many labelled tokens. The values are those of the ordinary step to the bit, but for a -0 in B that
    a step skipped by an optimizer without state may turn into 0. On the CPU the same operations run
    uncaptured.

    Args:
        loss: of the model to tune.
        estimator: makes projected gradients of the losses.
        optimizer: of the model's LoRA-B; its learning rates are read in each step.
        distribution: of the directions.
    """

    def __init__(
        self, loss: LabelledLoss, estimator: Estimator, optimizer: ZOOptimizer, distribution: str
    ) -> None:
        self._loss, self._estimator, self._optimizer = loss, estimator, optimizer
        self._distribution = distribution
        self._device = device = loss.model.device
        self._coeffs = estimator.coeffs().to(device)
        self._steps: OrderedDict[Hashable, _StaticStep] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    @torch.no_grad()
    def __call__(
        self, batch: Mapping[str, torch.Tensor], seeds: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, bool]:
        """One step, the update included, which leaves B alone if a loss is not finite.

        Args:
            batch: as for :class:`LabelledLoss`.
            seeds: int64 [q].

        Returns:
            losses [G] and projected gradients [q], both float32 on the CPU, and whether B was updated.

        Raises:
            ValueError: if the batch has nothing to predict, or the optimizer has got options that
                :func:`check_capturable` refuses.
            RuntimeError: if the model cannot be captured. In each of these cases nothing was updated.
        """
        check_capturable(self._loss.model, self._optimizer)
        for group in self._optimizer.param_groups:
            self._optimizer.prepare(group)
        labelled = self._loss.labelled(batch)
        key, inputs = self._key(labelled), self._inputs(labelled, seeds)
        step = self._steps.get(key)
        if step is None:
            step = self._steps[key] = _StaticStep(labelled, inputs, self._estimator, self._device)
            if len(self._steps) > MOST_GRAPHS:
                self._steps.popitem(last=False)
        self._steps.move_to_end(key)
        step.load(inputs)
        if step.fresh:
            self._run(step)
            step.fresh = False
        else:
            if step.replay is None:
                step.replay = self._captured(step)
            step.replay()
        groups = self._estimator.groups
        result = step.result.cpu()
        applied = bool(result.isfinite().all())
        if applied:
            for group in self._optimizer.param_groups:
                self._optimizer.count(group)
        self._optimizer.tell_schedulers()
        losses, projected_grads = result.split([groups, len(seeds)])
        return losses, projected_grads, applied

    def _key(self, labelled: LabelledBatch) -> Hashable:
        """All that a graph takes for granted."""
        shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in labelled.tensors().items())
        groups = self._optimizer.param_groups
        places = tuple(tensor.data_ptr() for group in groups for tensor in self._tensors(group))
        rules = tuple(self._optimizer.rule_of(group) for group in groups)
        return shapes, places, rules, self._loss.model.training

    def _inputs(self, batch: LabelledBatch, seeds: torch.Tensor) -> dict[str, torch.Tensor]:
        """What steps on batches of one shape differ by, on the host."""
        optimizer, groups = self._optimizer, self._optimizer.param_groups
        scales = [optimizer.rule_of(group).coefficient(group["lr"], len(seeds)) for group in groups]
        rates = [optimizer.rate(group) for group in groups]
        return {
            **batch.tensors(),
            "seeds": seeds,
            "group_seeds": self._estimator.seeds(seeds),
            # For each group of parameters: the factor from slopes to coefficients, and the update's rate.
            "scales": torch.tensor(scales, dtype=torch.float64, device="cpu"),
            "rates": torch.tensor(rates, dtype=torch.float32, device="cpu"),
        }

    def _tensors(self, group: dict[str, Any]) -> list[torch.Tensor]:
        """What a step of the optimizer changes of a group: parameters and their state."""
        optimizer, params = self._optimizer, group["params"]
        names = optimizer.rule_of(group).state
        return [*params, *(optimizer.state[param][name] for param in params for name in names)]

    def _run(self, step: _StaticStep) -> None:
        """The operations of a step; the optimizer's arithmetic, each operation in float64 as there."""
        estimator, directions = self._estimator, adapter_of(self._loss.model).directions
        plain = "position_ids" not in step.batch.inputs
        with (
            directions.use(step.inputs["group_seeds"], self._coeffs, self._distribution),
            one_text_per_row() if plain else contextlib.nullcontext(),
        ):
            losses = self._loss.of_labelled(step.batch, estimator.groups)
        projected_grads = estimator.slopes(losses.double()).float()
        finite = losses.isfinite().all() & projected_grads.isfinite().all()
        slopes = projected_grads.double().masked_fill(~finite, 0.0)
        for i, group in enumerate(self._optimizer.param_groups):
            # State moves without a slope, too: it is put back if a loss was not finite.
            changed = self._tensors(group) if self._optimizer.rule_of(group).state else []
            before = [tensor.clone() for tensor in changed]
            coeffs = (step.inputs["scales"][i] * slopes).float()
            self._optimizer.update(group, step.inputs["seeds"], coeffs, step.inputs["rates"][i : i + 1])
            for tensor, old in zip(changed, before, strict=True):
                tensor.copy_(torch.where(finite, tensor, old))
        step.result.copy_(torch.cat([losses, projected_grads]))

    def _captured(self, step: _StaticStep) -> Callable[[], None]:
        """What makes the step again: the replay of its graph, or the operations themselves on the CPU."""
        if self._device.type != "cuda":
            return lambda: self._run(step)
        try:
            graph = torch.cuda.CUDAGraph()
            # Other threads, which load data, may go on allocating pinned memory meanwhile.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                self._run(step)
        except RuntimeError as error:
            name = type(self._loss.model).__name__
            raise RuntimeError(
                f"cuda_graph=True: a step of {name} cannot be captured in a CUDA graph; "
                f"use cuda_graph=False ({error})"
            ) from error
        return graph.replay


class _StaticStep:
    """A batch that stays where it is, and losses [G] and projected gradients [q] in one tensor after it.

    Attributes:
        inputs: what a step reads, by name, on the device.
        batch: made of them.
        fresh: no step was made yet.
        replay: makes the captured step, once there is one.
    """

    def __init__(
        self,
        batch: LabelledBatch,
        inputs: Mapping[str, torch.Tensor],
        estimator: Estimator,
        device: torch.device,
    ) -> None:
        ends = list(accumulate(_aligned(tensor.nbytes) for tensor in inputs.values()))
        size, on_gpu = ends[-1], device.type == "cuda"
        # All inputs in one copy, from memory that the GPU reads by itself: each copy costs a launch.
        self._host = torch.empty(size, dtype=torch.uint8, device="cpu", pin_memory=on_gpu)
        self._device = torch.empty(size, dtype=torch.uint8, device=device)
        self._written = _views(self._host, inputs, [0, *ends])
        self._copied = torch.cuda.Event() if on_gpu else None
        self.inputs = _views(self._device, inputs, [0, *ends])
        self.batch = batch.made_of(self.inputs)
        self.result = torch.empty(estimator.groups + estimator.queries, dtype=torch.float32, device=device)
        self.fresh = True
        self.replay: Callable[[], None] | None = None

    def load(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """Take the values of inputs of the same shapes."""
        if self._copied is not None:
            self._copied.synchronize()  # a step that failed may not have waited for its inputs
        for name, tensor in inputs.items():
            self._written[name].copy_(tensor)
        self._device.copy_(self._host, non_blocking=True)
        if self._copied is not None:
            self._copied.record()


def _aligned(size: int) -> int:
    """Bytes of a place that ends where any tensor may begin."""
    return -(-size // 16) * 16


def _views(
    memory: torch.Tensor, tensors: Mapping[str, torch.Tensor], begins: Sequence[int]
) -> dict[str, torch.Tensor]:
    """Tensors of the same names, shapes and types, each in its place in `memory`, uint8."""
    places = zip(begins, tensors.items(), strict=False)
    return {
        name: memory[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
        for begin, (name, tensor) in places
    }


def check_capturable(model: nn.Module, optimizer: ZOOptimizer) -> None:
    """Raise ValueError, naming the argument, if :class:`GraphedSteps` cannot make steps of the model."""
    if not is_wrapped(model):
        raise ValueError("cuda_graph=True needs a model wrapped by mobizo_kernels.wrap, not full parameters")
    for group in optimizer.param_groups:
        if group["weight_decay"]:
            raise ValueError(f"cuda_graph=True needs weight_decay=0, got {group['weight_decay']}")


def check_graphable(model: nn.Module, optimizer: ZOOptimizer, compile: bool, store: object) -> None:
    """Raise ValueError for a run whose step no CUDA graph can hold, by the arguments of ZerothOrder."""
    if compile:
        raise ValueError("cuda_graph=True needs compile=False and a model that is not compiled")
    check_capturable(model, optimizer)
    check_on_cuda(model)
    if store is not None:
        raise ValueError("cuda_graph=True needs store=None: a graph cannot look up which rows it has")


def check_on_cuda(model: nn.Module) -> None:
    """Raise ValueError unless every parameter of the model is on one CUDA device."""
    devices = {str(parameter.device) for parameter in model.parameters()}
    if len(devices) != 1 or not next(iter(devices)).startswith("cuda"):
        found = ", ".join(sorted(devices))
        raise ValueError(f"cuda_graph=True needs the whole model on one CUDA device, got one on {found}")


@contextlib.contextmanager
def one_text_per_row() -> Iterator[None]:
    """Keep transformers from looking for several texts in a row, where the caller knows of none.

    It reads the positions back to find that out. While a graph is captured it cannot, and masks the attention
    for the worst case: another kernel, slower and of other roundings than that of the ordinary step.
    """
    name = "find_packed_sequence_indices"
    original = getattr(masking_utils, name, None)
    if original is None:  # a transformers that does not look
        yield
        return
    setattr(masking_utils, name, lambda position_ids: None)
    try:
        yield
    finally:
        setattr(masking_utils, name, original)
