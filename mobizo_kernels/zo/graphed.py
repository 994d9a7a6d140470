"""A whole step as one CUDA graph: forward of all groups, losses, projected gradients and update of B.

What changes from step to step lies in tensors that stay where they are: the graph reads them, and a step
writes them before it replays the graph. Nothing inside waits for the host, not even to find out whether a
loss is finite; the host reads losses and projected gradients when everything is done.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from transformers import masking_utils

from mobizo_kernels.lora import adapter_of, is_wrapped
from mobizo_kernels.zo.base_optimizer import ZOOptimizer
from mobizo_kernels.zo.estimators import Estimator
from mobizo_kernels.zo.labelled import LabelledBatch
from mobizo_kernels.zo.loss import LabelledLoss

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
        self._seeds = torch.zeros(estimator.queries, dtype=torch.int64, device=device)
        self._group_seeds = torch.zeros(estimator.groups, dtype=torch.int64, device=device)
        self._coeffs = estimator.coeffs().to(device)
        # For each group of parameters: the factor from slopes to coefficients, and the rate of the update.
        self._scales = torch.zeros(len(optimizer.param_groups), dtype=torch.float64, device=device)
        self._rates = torch.zeros(len(optimizer.param_groups), dtype=torch.float32, device=device)
        self._steps: OrderedDict[Hashable, _StaticStep] = OrderedDict()
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    @torch.no_grad()
    def __call__(
        self, batch: Mapping[str, torch.Tensor], seeds: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One step, the update included, which leaves B alone if a loss is not finite.

        Args:
            batch: as for :class:`LabelledLoss`.
            seeds: int64 [q].

        Returns:
            losses [G] and projected gradients [q], both float32 on the CPU.

        Raises:
            ValueError: if the batch has nothing to predict, or the optimizer has got options that
                :func:`check_capturable` refuses.
            RuntimeError: if the model cannot be captured. In each of these cases nothing was updated.
        """
        check_capturable(self._loss.model, self._optimizer)
        for group in self._optimizer.param_groups:
            self._optimizer.prepare(group)
        labelled = self._loss.labelled(batch)
        key = self._key(labelled)
        step = self._steps.get(key)
        if step is None:
            step = self._steps[key] = _StaticStep(labelled, self._estimator)
            if len(self._steps) > MOST_GRAPHS:
                self._steps.popitem(last=False)
        else:
            step.load(labelled)
        self._steps.move_to_end(key)
        self._load(seeds)
        if step.fresh:
            self._run(step)
            step.fresh = False
        else:
            if step.replay is None:
                step.replay = self._captured(step)
            step.replay()
        groups = self._estimator.groups
        result = step.result.cpu()
        if result.isfinite().all():
            for group in self._optimizer.param_groups:
                self._optimizer.count(group)
        losses, projected_grads = result.split([groups, len(seeds)])
        return losses, projected_grads

    def _key(self, labelled: LabelledBatch) -> Hashable:
        """All that a graph takes for granted."""
        shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in labelled.tensors().items())
        groups = self._optimizer.param_groups
        places = tuple(tensor.data_ptr() for group in groups for tensor in self._tensors(group))
        rules = tuple(self._optimizer.rule_of(group) for group in groups)
        return shapes, places, rules, self._loss.model.training

    def _load(self, seeds: torch.Tensor) -> None:
        """Write what the next step differs by."""
        optimizer, groups = self._optimizer, self._optimizer.param_groups
        scales = [optimizer.rule_of(group).coefficient(group["lr"], len(seeds)) for group in groups]
        rates = [optimizer.rate(group) for group in groups]
        self._seeds.copy_(seeds)
        self._group_seeds.copy_(self._estimator.seeds(seeds))
        self._scales.copy_(torch.tensor(scales, dtype=torch.float64, device="cpu"))
        self._rates.copy_(torch.tensor(rates, dtype=torch.float32, device="cpu"))

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
            directions.use(self._group_seeds, self._coeffs, self._distribution),
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
            coeffs = (self._scales[i] * slopes).float()
            self._optimizer.update(group, self._seeds, coeffs, self._rates[i : i + 1])
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
        fresh: no step was made yet.
        replay: makes the captured step, once there is one.
    """

    def __init__(self, batch: LabelledBatch, estimator: Estimator) -> None:
        self.batch = batch.clone()
        self.result = torch.empty(
            estimator.groups + estimator.queries, dtype=torch.float32, device=batch.rows.device
        )
        self.fresh = True
        self.replay: Callable[[], None] | None = None

    def load(self, batch: LabelledBatch) -> None:
        """Take the values of a batch of the same shape."""
        values = batch.tensors()
        for name, tensor in self.batch.tensors().items():
            tensor.copy_(values[name])


def check_capturable(model: nn.Module, optimizer: ZOOptimizer) -> None:
    """Raise ValueError, naming the argument, if :class:`GraphedSteps` cannot make steps of the model."""
    if not is_wrapped(model):
        raise ValueError("cuda_graph=True needs a model wrapped by mobizo_kernels.wrap, not full parameters")
    for group in optimizer.param_groups:
        if group["weight_decay"]:
            raise ValueError(f"cuda_graph=True needs weight_decay=0, got {group['weight_decay']}")


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
