"""What the optimizers have in common: torch's face, the standing perturbation, records, and float32 state."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from mobizo_kernels.ops import foreach_perturb_, parameter_stream
from mobizo_kernels.ops.checks import require_distribution
from mobizo_kernels.optim.records import Records, StepRecord, record_of
from mobizo_kernels.optim.seeds import query_seeds
from mobizo_kernels.optim.update_rule import UpdateRule

MOST_SEEDS = 1 << 14
"""Of a pass, which keeps the signs of directions "outer" for all: a bit for each row and column."""

NamedParameters = Iterable[tuple[str, torch.Tensor]] | Iterable[dict[str, Any]]


class ZOOptimizer(torch.optim.Optimizer, ABC):
    """An optimizer whose gradient is a list of seeds and as many scalars: no gradient or noise tensor exists.

    An update by the zeroth-order estimate (1 / q) sum_k g_k z_k is one fused pass over each parameter and its
    state, whatever the number of queries, weight decay included.

    It is a `torch.optim.Optimizer`, so torch's schedulers, parameter groups and state_dict work. State is
    float32 and of the shape of its parameter, whatever the parameter's dtype.
    """

    _updated = False  # since the last call of `step` without arguments

    def __init__(self, named_parameters: NamedParameters, **options: Any) -> None:
        super().__init__(named_parameters, options)  # type: ignore[arg-type]  # dicts of groups, too

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters with options of their own. Raises ValueError as the constructor does."""
        options = {**self.defaults, **param_group}
        self.rule_of(options)
        require_distribution(options["distribution"])
        super().add_param_group(param_group)
        if "param_names" not in self.param_groups[-1]:
            self.param_groups.pop()
            raise ValueError("parameters must come with their names, as (name, tensor) pairs")

    @staticmethod
    @abstractmethod
    def rule_of(group: dict[str, Any]) -> UpdateRule:
        """The rule that the options of a group of parameters make, at the rate that it began with."""

    @property
    def rule(self) -> UpdateRule:
        """Of the first group of parameters."""
        return self.rule_of(self.param_groups[0])

    @torch.no_grad()
    def perturb(self, seeds: torch.Tensor, coeffs: torch.Tensor) -> None:
        """Add sum_k coeffs[k] z(seeds[k]) to every parameter: a trial of full-parameter MeZO, in one pass.

        Args:
            seeds: int64 [n].
            coeffs: float [n]; rounded to float32.
        """
        for group in self.param_groups:
            self._perturb(group, seeds, coeffs)

    @torch.no_grad()
    def step(  # type: ignore[override]  # a gradient is an argument here: there is no p.grad to find it in
        self,
        seeds: torch.Tensor | None = None,
        projected_grads: torch.Tensor | None = None,
        standing: torch.Tensor | None = None,
    ) -> None:
        """Update every parameter along the directions of `seeds`: :meth:`record` and :meth:`apply` in one.

        Without arguments, as training loops call it after `loss.backward()`, there is nothing left to do:
        :meth:`mobizo_kernels.ZerothOrder.step`, which stands in the place of that, has made the update.

        Args:
            seeds: int64 [q].
            projected_grads: float32 [q].
            standing: as for :meth:`record`.

        Raises:
            RuntimeError: without arguments, if no update was made since the last such call.
        """
        if seeds is None or projected_grads is None:
            if not self._updated:
                raise RuntimeError(
                    f"{type(self).__name__}.step: no gradient is there to step along, and no update was made "
                    "since the last call; call ZerothOrder.step(batch) where loss.backward() stood"
                )
            self._updated = False
            return
        self.apply(seeds, self.record(projected_grads, standing=standing))

    def record(
        self,
        projected_grads: torch.Tensor,
        loss: float = float("nan"),
        standing: torch.Tensor | None = None,
    ) -> StepRecord:
        """What an update by this estimate is about to do. Nothing is changed yet.

        Args:
            projected_grads: float32 [q].
            loss: of the step, for the record.
            standing: float32 [q] or None; what of each direction is still on the parameters from the trials
                of this step. Plain SGD takes it off in the pass that updates, others in one of its own.

        Returns:
            The step, or a skipped one if a coefficient of its update is not finite.
        """
        slopes = projected_grads.cpu().double()
        standing = None if standing is None or not standing.any() else standing.cpu()
        first, *others = (self._record(group, slopes, loss, standing) for group in self.param_groups)
        if not all(bool(part.coeffs.isfinite().all()) for part in (first, *others)):
            return StepRecord.skipped(len(slopes), loss, standing)
        return replace(first, others=tuple(others))

    @torch.no_grad()
    def apply(self, seeds: torch.Tensor, record: StepRecord) -> None:
        """Make the step of a record. A step that is made now, resumed or replayed is this call, and so its
        bits are the same.

        Args:
            seeds: int64 [q].
            record: of the step, for all groups of parameters unless it has others; one that was skipped
                changes nothing, but for taking off what its trials have left.
        """
        parts = (record, *record.others) if record.others else (record,) * len(self.param_groups)
        for group, part in zip(self.param_groups, parts, strict=True):
            if part.standing is not None:
                left = part.standing != 0
                self._perturb(group, seeds[left], -part.standing[left])
            if part.applied:
                self._apply(group, seeds, part)
        self.tell_schedulers()

    @torch.no_grad()
    def apply_steps(self, run_seed: int, first: int, records: Records) -> None:
        """:meth:`apply` for steps in a row; plain SGD takes all of them in one pass over float32.

        Args:
            run_seed: of the run.
            first: number of the first of the steps.
            records: of the steps, [n].
        """
        queries = records.coeffs.shape[1]
        params = [param for group in self.param_groups for param in group["params"]]
        if not self.rule.plain or any(param.dtype != torch.float32 for param in params):
            for step, record in enumerate(records, first):
                self.apply(query_seeds(run_seed, step, queries), record)
        elif records.applied.any():
            # In float32 the updates of many steps are one chain of fused multiply-adds.
            steps = (records.applied.nonzero()[:, 0] + first).tolist()
            seeds = torch.cat([query_seeds(run_seed, step, queries) for step in steps])
            coeffs = records.coeffs[records.applied].flatten()
            for part in zip(seeds.split(MOST_SEEDS), coeffs.split(MOST_SEEDS), strict=True):
                self.perturb(*part)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the state of another optimizer of the same kind, see torch.optim.Optimizer."""
        super().load_state_dict(state_dict)
        # torch rounds state to the dtype of its parameter; ours stays float32.
        saved = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for index, param in zip(saved, params, strict=True):
            for name, value in state_dict["state"].get(index, {}).items():
                if isinstance(value, torch.Tensor):
                    self.state[param][name] = value.to(param.device, torch.float32, copy=True)

    @abstractmethod
    def update(
        self, group: dict[str, Any], seeds: torch.Tensor, coeffs: torch.Tensor, rate: torch.Tensor,
        decay: float = 1.0,
    ) -> None:  # fmt: skip
        """The passes over a group of parameters whose state is there; a CUDA graph can hold them.

        Args:
            group: of `param_groups`.
            seeds: int64 [q], on the device of the parameters as the next two are.
            coeffs: float32 [q].
            rate: float32 [1].
            decay: factor on the parameters.
        """

    def prepare(self, group: dict[str, Any]) -> None:
        """Give the parameters of a group the state that an update needs: zeros, where they have none yet."""
        names = self.rule_of(group).state
        for param in group["params"]:
            for name in names:
                if name not in self.state[param]:
                    self.state[param][name] = torch.zeros(
                        param.shape, dtype=torch.float32, device=param.device
                    )

    @staticmethod
    def first_rate(group: dict[str, Any]) -> float:
        """The learning rate of a group before any schedule of torch, which keeps it there."""
        return group.get("initial_lr", group["lr"])

    def rate(self, group: dict[str, Any]) -> float:
        """The rate of a group's next update."""
        return self.rule_of(group).rate(group["lr"], self._updates(group))

    def count(self, group: dict[str, Any]) -> None:
        """Count an update of a group, if the rate of the next depends on their number."""

    def tell_schedulers(self) -> None:
        """Say that a step was made: the schedulers of torch look for this sign of Optimizer.step."""
        self._opt_called = self._updated = True

    def _record(
        self, group: dict[str, Any], slopes: torch.Tensor, loss: float, standing: torch.Tensor | None
    ) -> StepRecord:
        """:meth:`record` of one group, from float64 slopes [q]."""
        rule, updates = self.rule_of(group), self._updates(group)
        return record_of(rule, slopes, lr=group["lr"], updates=updates, loss=loss, standing=standing)

    def _updates(self, group: dict[str, Any]) -> int:
        """Made of a group so far, if the rate of the next depends on it."""
        return self.state.get(group["params"][0], {}).get("step", 0)

    def _apply(self, group: dict[str, Any], seeds: torch.Tensor, record: StepRecord) -> None:
        self.prepare(group)
        device = group["params"][0].device
        rate = torch.tensor([record.rate], dtype=torch.float32, device=device)
        self.update(group, seeds.to(device), record.coeffs.to(device), rate, record.decay)
        self.count(group)

    def _state(self, group: dict[str, Any]) -> list[list[torch.Tensor]]:
        """For each kind of state in a group the tensors of all its parameters."""
        return [[self.state[param][name] for param in group["params"]] for name in self.rule_of(group).state]

    @staticmethod
    def _streams(group: dict[str, Any]) -> list[int]:
        return [parameter_stream(name) for name in group["param_names"]]

    def _perturb(
        self, group: dict[str, Any], seeds: torch.Tensor, coeffs: torch.Tensor, decay: float = 1.0
    ) -> None:
        """p = decay * p + sum_k coeffs[k] z(seeds[k]) of each parameter, under its own stream."""
        device = group["params"][0].device
        coeffs, streams = coeffs.to(device, torch.float32), self._streams(group)
        foreach_perturb_(group["params"], seeds.to(device), coeffs, streams, decay, group["distribution"])
