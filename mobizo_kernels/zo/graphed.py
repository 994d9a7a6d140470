"""A whole step as one CUDA graph: forward of all groups, losses, projected gradients and update of B.

What changes from step to step lies in tensors that stay where they are: the graph reads them, and a step
writes them before it replays the graph. Nothing inside waits for the host, not even to find out whether a
loss is finite; the host reads losses and projected gradients when everything is done.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping

import torch
from torch import nn
from transformers import masking_utils

from mobizo_kernels.lora import adapter_of, is_wrapped
from mobizo_kernels.ops import foreach_perturb_, parameter_stream
from mobizo_kernels.zo.estimators import Estimator
from mobizo_kernels.zo.loss import LabelledBatch, LabelledLoss
from mobizo_kernels.zo.optimizers import ZOSGD

MOST_GRAPHS = 32
"""Graphs kept at a time, one for each shape of a batch; the one unused for longest goes first."""


class GraphedSteps:
    """Makes steps of a wrapped model without any work for the host between their first kernel and the last.

    The first step on a shape of batches runs as it is, which compiles and tunes its kernels; the second one
    captures the graph. Batches of one shape have equal sizes up to the column of the last prediction, as many
    labelled tokens, and either all of them padding or none. The values are those of the ordinary step to the
    bit, but for a -0 in B that a skipped step may turn into 0. On the CPU the same operations run uncaptured.

    Args:
        loss: of the model to tune.
        estimator: makes projected gradients of the losses.
        optimizer: of the model's LoRA-B; its learning rates are read in each step.
        distribution: of the directions.
    """

    def __init__(self, loss: LabelledLoss, estimator: Estimator, optimizer: ZOSGD, distribution: str) -> None:
        self._loss, self._estimator, self._optimizer = loss, estimator, optimizer
        self._distribution = distribution
        self._device = device = loss.model.device
        self._seeds = torch.zeros(estimator.queries, dtype=torch.int64, device=device)
        self._group_seeds = torch.zeros(estimator.groups, dtype=torch.int64, device=device)
        self._coeffs = estimator.coeffs().to(device)
        self._rates = torch.zeros(len(optimizer.param_groups), dtype=torch.float64, device=device)
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
        losses, projected_grads = step.result.cpu().split([groups, len(seeds)])
        return losses, projected_grads

    def _key(self, labelled: LabelledBatch) -> Hashable:
        """All that a graph takes for granted."""
        shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in labelled.tensors().items())
        params = (param for group in self._optimizer.param_groups for param in group["params"])
        places = tuple(param.data_ptr() for param in params)
        return shapes, places, self._loss.model.training

    def _load(self, seeds: torch.Tensor) -> None:
        """Write what the next step differs by."""
        rates = [-group["lr"] / len(seeds) for group in self._optimizer.param_groups]
        self._seeds.copy_(seeds)
        self._group_seeds.copy_(self._estimator.seeds(seeds))
        self._rates.copy_(torch.tensor(rates, dtype=torch.float64))

    def _run(self, step: _StaticStep) -> None:
        """The operations of a step; ZOSGD's arithmetic, each operation in float64 as there."""
        estimator, directions = self._estimator, adapter_of(self._loss.model).directions
        plain = "position_ids" not in step.batch.inputs
        with (
            directions.use(self._group_seeds, self._coeffs, self._distribution),
            one_text_per_row() if plain else contextlib.nullcontext(),
        ):
            losses = self._loss.of_labelled(step.batch, estimator.groups)
        projected_grads = estimator.slopes(losses.double()).float()
        slopes = projected_grads.double().masked_fill(~losses.isfinite().all(), 0.0)
        for group, rate in zip(self._optimizer.param_groups, self._rates, strict=True):
            streams = [parameter_stream(name) for name in group["param_names"]]
            coeffs = (rate * slopes).float()
            foreach_perturb_(group["params"], self._seeds, coeffs, streams, 1.0, group["distribution"])
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
        self.result = torch.empty(estimator.groups + estimator.queries, device=batch.rows.device)
        self.fresh = True
        self.replay: Callable[[], None] | None = None

    def load(self, batch: LabelledBatch) -> None:
        """Take the values of a batch of the same shape."""
        values = batch.tensors()
        for name, tensor in self.batch.tensors().items():
            tensor.copy_(values[name])


def check_capturable(model: nn.Module, optimizer: ZOSGD) -> None:
    """Raise ValueError, naming the argument, if :class:`GraphedSteps` cannot make steps of the model."""
    if not is_wrapped(model):
        raise ValueError("cuda_graph=True needs a model wrapped by mobizo_kernels.wrap, not full parameters")
    for group in optimizer.param_groups:
        for name in ("momentum", "weight_decay"):
            if group[name]:
                raise ValueError(f"cuda_graph=True needs {name}=0, got {group[name]}")


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
