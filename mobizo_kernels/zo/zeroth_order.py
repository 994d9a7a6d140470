"""From a batch to an updated model by forward passes only: one for a wrapped model, G for any other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from mobizo_kernels.journal import JournalWriter
from mobizo_kernels.journal.header import JournalHeader, PathLike
from mobizo_kernels.journal.replay import model_fields
from mobizo_kernels.lora import adapter_layers, adapter_of, is_wrapped
from mobizo_kernels.lora.weights_fingerprint import adapter_fingerprints
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.loss.compiled import not_compiled
from mobizo_kernels.loss.sharing import StateStore
from mobizo_kernels.optim.optimizers import make_optimizer
from mobizo_kernels.optim.records import Records, StepRecord
from mobizo_kernels.optim.seeds import check_run_seed, query_seeds, signed_seed
from mobizo_kernels.optim.update_rule import UpdateRule
from mobizo_kernels.parameters import (
    check_tuned,
    has_wrapped_parameters,
    parameter_directions,
)
from mobizo_kernels.parameters.directions import check_outer
from mobizo_kernels.zo.arguments import make_estimator, make_rule
from mobizo_kernels.zo.batches import Batch, Measure, listed_batches, losses_over, weight_of
from mobizo_kernels.zo.estimators import Estimator
from mobizo_kernels.zo.graphed import GraphedSteps, check_capturable, check_on_cuda
from mobizo_kernels.zo.models import model_to_tune
from mobizo_kernels.zo.objective import Objective, Shaping, check_shaping, shaped
from mobizo_kernels.zo.outputs import GroupLosses, StepOutput
from mobizo_kernels.zo.parameters import tuned_parameters, warn_of_eps


class ZerothOrder:
    """Fine-tune a causal LM without back-propagation.

    A model wrapped by :func:`mobizo_kernels.wrap` is tuned by MobiZO (arXiv 2409.15520): one batched forward
    over G copies of the batch, each seeing its own perturbed LoRA-B, and one update of B in place. No
    perturbed B is ever stored, so B does not drift.

    A model of :func:`mobizo_kernels.wrap_parameters` is tuned in all its parameters that require a gradient,
    in the same way: one forward, of `distribution="outer"`, and one update in place. Nothing is written while
    losses are taken.

    Any other model is tuned in these parameters by MeZO (arXiv 2305.17333): G forwards, the parameters being
    perturbed in place between them. Taking one perturbation off and putting the next one on is one pass over
    the parameters, and so is taking the last one off together with the update: 2q + 1 passes (two_sided)
    where MeZO makes 4q. As in MeZO, each pass rounds to the parameters' dtype, so in half precision they
    drift a little.

    Dropout is the caller's: call `model.eval()` unless the copies of the batch shall see different masks.

    Args:
        model: a causal LM of transformers, wrapped or not. One that torch.compile returned, or whose
            `compile()` was called, is taken for `compile=True` and the model inside of it. The active LoRA of
            a PeftModel is taken over, see :func:`mobizo_kernels.wrap`.
        estimator: a :class:`TwoSided` (G = 2q groups), :class:`OneSided` (G = q + 1) or :class:`Centred`
            (G = q), or the name "two_sided", "one_sided" or "centred" of one that is made of `queries`, `eps`
            and `normalize`.
        optimizer: an :class:`UpdateRule`, or the name "sgd", "adam" or "sign" of one that is made of `lr` and
            what follows it. A learning rate is of a different kind for each.
        run_seed: any 64-bit integer; it gives all directions of the run.
        distribution: of the directions, "gaussian", "rademacher" or "outer", which alone a model of
            `wrap_parameters` takes.
        candidate_tokens: restrict the loss to these tokens, see :class:`LabelledLoss`.
        store: keeps what the base model makes of the tokens before an invocation, for the next epoch.
        journal: file that gets a record of each step, see :meth:`open_journal`.
        resume: go on with `journal` if there is such a file: its steps are applied to the model, which must
            be as it was before the first of them.
        cuda_graph: capture the whole step in a CUDA graph, one for each shape of a batch, and replay it: the
            step is then free of what launching costs. The model must be wrapped and on one CUDA device;
            weight decay and a journal are not supported. See :class:`GraphedSteps`.
        compile: run the decoder's layers by torch.compile, with the adapters in them: the losses are the same
            up to the rounding of the model's dtype. One graph serves all layers of a kind, and batches of
            other sizes, unless a size is 1. The first step compiles; see docs/usage.md for when it pays.
        queries: q, random directions in each step; 4 by default.
        eps: size of a perturbation, 1e-2 by default, which suits LoRA; 1e-3 suits full parameters.
        normalize: divide by the standard deviation of the step's losses, not by eps (FZOO, arXiv 2506.09034).
        lr: learning rate, 1e-3 by default.
        momentum: of "sgd", in [0, 1).
        betas: of "adam".
        adam_eps: of "adam".
        weight_decay: decoupled.

    Attributes:
        model: that is tuned: of a PeftModel, the one inside.
        estimator: the :class:`Estimator` of the steps.
        optimizer: the :class:`ZOOptimizer` that updates the parameters; give it to a scheduler of torch.
        run_seed: as given, like the next.
        distribution: of the directions.
        steps: number of steps made or applied from a journal.
        skipped_steps: number of those without an update because a loss was not finite.
        journal: the open :class:`JournalWriter`, or None.

    Raises:
        ValueError: naming the argument, if one is out of range or is given beside an object that has it, or
            the model cannot be tuned.
        OSError: if `journal` exists without `resume`, or cannot be read or written.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        estimator: Estimator | str = "two_sided",
        optimizer: UpdateRule | str = "sgd",
        run_seed: int = 0,
        distribution: str = "gaussian",
        candidate_tokens: Sequence[int] | None = None,
        store: StateStore | None = None,
        journal: PathLike | None = None,
        resume: bool = False,
        cuda_graph: bool = False,
        compile: bool = False,
        queries: int | None = None,
        eps: float | None = None,
        normalize: bool | None = None,
        lr: float | None = None,
        momentum: float | None = None,
        betas: tuple[float, float] | None = None,
        adam_eps: float | None = None,
        weight_decay: float | None = None,
    ) -> None:
        check_run_seed(run_seed)
        self.run_seed, self.distribution = int(run_seed), distribution
        self.estimator = make_estimator(estimator, queries=queries, eps=eps, normalize=normalize)
        self._rule = make_rule(
            optimizer, lr=lr, momentum=momentum, betas=betas, adam_eps=adam_eps, weight_decay=weight_decay
        )
        self.steps = 0
        self.skipped_steps = 0
        self.journal: JournalWriter | None = None
        self._graphed: GraphedSteps | None = None
        with model_to_tune(model) as (self.model, compiled):
            self._set_up(candidate_tokens, store, compile or compiled, cuda_graph)
            if journal is not None:
                self.apply(self.open_journal(journal, resume=resume))

    def _set_up(
        self,
        candidate_tokens: Sequence[int] | None,
        store: StateStore | None,
        compile: bool,
        cuda_graph: bool,
    ) -> None:
        """Optimizer and loss of the model, as the arguments of the same names say."""
        model = self.model
        if has_wrapped_parameters(model):
            check_outer(self.distribution)
            check_tuned(model)
        self.optimizer = make_optimizer(tuned_parameters(model), self._rule, self.distribution)
        if cuda_graph:
            if compile:
                raise ValueError("cuda_graph=True needs compile=False and a model that is not compiled")
            check_capturable(model, self.optimizer)
            check_on_cuda(model)
            if store is not None:
                raise ValueError("cuda_graph=True needs store=None: a graph cannot look up which rows it has")
        self.loss = LabelledLoss(model, candidate_tokens=candidate_tokens, store=store, compile=compile)
        warn_of_eps(model, self.estimator.eps)
        if cuda_graph:
            self._graphed = GraphedSteps(self.loss, self.estimator, self.optimizer, self.distribution)

    def open_journal(
        self,
        path: PathLike,
        *,
        resume: bool = False,
        lr_schedule: str | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        data: str | None = None,
    ) -> Records:
        """Record every step from now on in `path`, before it is applied: replaying the file gives this run's
        adapter bit for bit (:func:`mobizo_kernels.journal.replay`), and a run that was cut off can go on from
        it.

        Args:
            path: of the journal; must not exist unless `resume`.
            resume: go on with `path` if it exists; a torn last record is cut off.
            lr_schedule: as the caller drives :attr:`optimizer`, for the header, like the next three.
            steps: planned.
            batch_size: rows in each step.
            data: a hash of the training rows.

        Returns:
            The steps recorded so far. They are yet to be applied by :meth:`apply`, at once or with
            evaluations in between.

        Raises:
            ValueError: naming the argument, if the parameters of an unwrapped model are tuned (a replay would
                not give the same bits), if the optimizer has several groups of parameters (the journal has
                one learning rate), if cuda_graph is True, if steps were made already, or if the journal is
                damaged or its header differs from this run's; it names the field then.
            OSError: if the journal exists without `resume`, is held by another run, or cannot be read or
                written.
        """
        if self._graphed is not None:
            raise ValueError(
                "journal needs cuda_graph=False, got True: a step has to be on the disk before it is applied"
            )
        if not self._batched:
            raise ValueError("journal needs a model wrapped by mobizo_kernels.wrap or wrap_parameters")
        if len(self.optimizer.param_groups) != 1:
            raise ValueError(f"journal needs one group of parameters, got {len(self.optimizer.param_groups)}")
        if self.steps:
            raise ValueError(f"journal must be opened before the first step, got one after step {self.steps}")
        header = self.journal_header(lr_schedule=lr_schedule, steps=steps, batch_size=batch_size, data=data)
        if resume:
            with suppress(FileNotFoundError):
                self.journal, recorded = JournalWriter.resume(path, header)
                return recorded
        self.journal = JournalWriter.create(path, header)
        return Records.none(header.queries)

    def journal_header(
        self,
        *,
        lr_schedule: str | None = None,
        steps: int | None = None,
        batch_size: int | None = None,
        data: str | None = None,
    ) -> JournalHeader:
        """All that decides on the outcome of this run, of which no step was made yet, as its journal has it.

        Args:
            lr_schedule: as of :meth:`open_journal`, like the next three.
            steps: planned.
            batch_size: rows in each step.
            data: a hash of the training rows.
        """
        candidates = self.loss.candidates
        return JournalHeader(
            **self.estimator.as_json(),
            run_seed=signed_seed(self.run_seed),
            lr_schedule=lr_schedule,
            steps=steps,
            distribution=self.distribution,
            optimizer=self.optimizer.rule,
            batch_size=batch_size,
            data=data,
            candidate_tokens=() if candidates is None else tuple(candidates.tolist()),
            **model_fields(self.model),
        )

    def apply(self, records: Records) -> None:
        """Apply recorded steps, without any forward; plain SGD takes all of them in one pass.

        Args:
            records: of the next steps, as :meth:`open_journal` returns them, or of another machine of the
                same run. Those that the journal does not have yet are recorded in it first.

        Raises:
            ValueError: if the records are not of q coefficients. Nothing was applied, as with the next.
            OSError: if the journal cannot be written.
        """
        queries, given = self.estimator.queries, list(records.coeffs.shape[1:])
        if given != [queries]:
            raise ValueError(f"records must have {queries} coefficients, got {given}")
        if self.journal is not None:
            for step, record in enumerate(records, self.steps):
                if step >= self.journal.steps:
                    self.journal.append(step, record)
        self.optimizer.apply_steps(self.run_seed, self.steps, records)
        self.steps += len(records)
        self.skipped_steps += int((~records.applied).sum())

    @torch.no_grad()
    def step(
        self,
        batch: Batch | Sequence[Batch],
        *,
        objective: Objective | None = None,
        shaping: Shaping = "none",
    ) -> StepOutput:
        """One step: G losses, q projected gradients, one update.

        If a loss is not finite the update is skipped, the step is counted in `skipped_steps`, and the next
        one goes on with new directions. Parameters and optimizer are as before then, and also if anything is
        raised: exactly in a wrapped model, up to the rounding of one perturbation in full-parameter mode.

        Args:
            batch: `input_ids`, `labels` and usually `attention_mask`, each [B, T], see :class:`LabelledLoss`.
                Or several of them, of any shapes, which make one estimate: that of their rows in one batch,
                up to rounding, in the memory of the largest.
            objective: what is minimised in place of the cross-entropy: `objective(model, batch, groups)`
                gives the loss of each group, float [groups], lower being better. It need not have a gradient.
                Where it is the same for all groups, the gradient is zero. Of several batches the mean counts,
                weighted by their rows.
            shaping: "none"; "standardise" or "rank" for the losses by which the directions are weighed, as
                evolution strategies do. The losses that are reported stay what they are.

        Raises:
            ValueError: if nothing is to be predicted, an option of :attr:`optimizer` is out of range, the
                objective gives something else than a loss for each group, cuda_graph=True comes with one or
                with several batches, or `model.compile()` was called after this was made. The step can be
                tried again.
            JournalLost: if the journal is no longer what this run wrote. Nothing was updated.
            OSError: if the journal cannot be written. Nothing was updated; the step can be tried again.
            RuntimeError: if compile=True and a layer cannot be compiled. Nothing was updated.
        """
        for group in self.optimizer.param_groups:
            self.optimizer.rule_of(group)  # an option that is out of range shows before anything is changed
        check_shaping(shaping)
        if not self.loss.compiles and not_compiled(self.model)[1]:
            raise ValueError("model.compile() must come before ZerothOrder, or compile=True be given to it")
        batches = listed_batches(batch)
        seeds = query_seeds(self.run_seed, self.steps, self.estimator.queries)
        if self._graphed is not None and (objective is not None or shaping != "none" or len(batches) > 1):
            raise ValueError("objective, shaping and several batches need cuda_graph=False")
        if self._graphed is None:
            measure = losses_over(self.loss, batches, objective)
            losses, projected_grads, record = self._made(measure, seeds, shaping)
            loss, applied = record.loss, record.applied
        else:
            losses, projected_grads, applied = self._graphed(batches[0], seeds)
            loss = self.estimator.loss(losses)
        if not applied:
            projected_grads = torch.full_like(projected_grads, float("nan"))
        output = StepOutput(self.steps, loss, losses, projected_grads, skipped=not applied)
        self.steps += 1
        self.skipped_steps += not applied
        return output

    @torch.no_grad()
    def losses(self, batch: Batch | Sequence[Batch], *, objective: Objective | None = None) -> GroupLosses:
        """What the next :meth:`step` would see: the losses of its G groups, without an update. A machine that
        shares a run with others sends them, and applies by :meth:`apply` what was made of all.

        Args:
            batch: as of :meth:`step`, like the next.
            objective: what is minimised in place of the cross-entropy.

        Raises:
            ValueError: as :meth:`step`, or if the parameters of an unwrapped model are tuned, which a look at
                the losses would round, or cuda_graph is True.
        """
        if self._graphed is not None:
            raise ValueError("losses needs cuda_graph=False, got True: a graph holds the whole step")
        if not self._batched:
            raise ValueError("losses needs a model wrapped by mobizo_kernels.wrap or wrap_parameters")
        batches = listed_batches(batch)
        weight = weight_of(self.loss, batches, objective)
        seeds = query_seeds(self.run_seed, self.steps, self.estimator.queries)
        return GroupLosses(self._batched_losses(losses_over(self.loss, batches, objective), seeds), weight)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the parameters: counters, settings, the optimizer's state."""
        return {
            "steps": self.steps,
            "skipped_steps": self.skipped_steps,
            "settings": self._identity(),
            "optimizer": self.optimizer.state_dict(),
        }

    def _identity(self) -> dict[str, Any]:
        """What a run that goes on has to agree with: what decides, together with a step's number, on the
        directions and on what is made of them, and the adapter that they are of.
        """
        candidates = self.loss.candidates
        identity: dict[str, Any] = {
            **self.estimator.as_json(),
            "run_seed": self.run_seed,
            "distribution": self.distribution,
            "optimizer": self._rule.as_json(),
            "candidate_tokens": None if candidates is None else candidates.tolist(),
        }
        if is_wrapped(self.model):
            layers = adapter_layers(self.model)
            identity["scalings"] = {name: layer.scaling for name, layer in layers.items()}
            identity["invocation_tokens"] = list(adapter_of(self.model).config.alora_invocation_tokens or ())
            identity["lora_a"] = adapter_fingerprints(self.model)[0]
        return identity

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the run that made `state` stopped.

        Raises:
            ValueError: if the settings of that run, its candidate tokens, or scalings, invocation tokens or
                LoRA-A of its adapter are not those of this one; nothing is changed then.
        """
        saved = state["settings"]
        for name, value in self._identity().items():
            # States of earlier versions say nothing of the adapter.
            if saved.get(name, value) != value:
                raise ValueError(f"{name} is {value!r} here, but the state was saved with {saved[name]!r}")
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.skipped_steps = state["steps"], state["skipped_steps"]

    @property
    def _batched(self) -> bool:
        """Whether one forward sees all groups."""
        return is_wrapped(self.model) or has_wrapped_parameters(self.model)

    def _made(
        self, measure: Measure, seeds: torch.Tensor, shaping: str
    ) -> tuple[torch.Tensor, torch.Tensor, StepRecord]:
        """The losses [G] and projected gradients [q] of a step, and its record, which is applied."""
        if self._batched:
            losses, standing = self._batched_losses(measure, seeds), None
        else:
            losses, standing = self._sequential_losses(measure, seeds)
        weighed = losses if shaping == "none" else shaped(losses, shaping)
        projected_grads = self.estimator.projected_gradients(weighed)
        record = self.optimizer.record(projected_grads, self.estimator.loss(losses), standing)
        if self.journal is not None:
            self.journal.append(self.steps, record)
        self.optimizer.apply(seeds, record)
        return losses, projected_grads, record

    def _batched_losses(self, measure: Measure, seeds: torch.Tensor) -> torch.Tensor:
        """losses [G] of a wrapped model, from one forward of each batch."""
        estimator = self.estimator
        adapted = is_wrapped(self.model)
        directions = adapter_of(self.model).directions if adapted else parameter_directions(self.model)
        with directions.use(estimator.seeds(seeds), estimator.coeffs(), self.distribution):
            return measure(estimator.groups)

    def _sequential_losses(self, measure: Measure, seeds: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """losses [G] from G forwards, and what of each direction is still on the parameters, float32 [q]."""
        losses, standing = _zeros(self.estimator.groups), _zeros(len(seeds))
        coeffs, plan = self.estimator.coeffs(), self.estimator.plan()
        try:
            # Groups of one query follow each other, so that a pass has two directions at most.
            for group in sorted(range(len(plan)), key=lambda group: plan[group][0]):
                wanted = _zeros(len(seeds))
                wanted[plan[group][0]] = coeffs[group]
                change = wanted - standing
                if change.any():
                    self.optimizer.perturb(seeds[change != 0], change[change != 0])
                standing = wanted
                losses[group] = measure(1)
        except BaseException:
            self._take_off(seeds, standing)
            raise
        return losses, standing

    def _take_off(self, seeds: torch.Tensor, standing: torch.Tensor) -> None:
        if standing.any():
            self.optimizer.perturb(seeds[standing != 0], -standing[standing != 0])


def _zeros(count: int) -> torch.Tensor:
    """float32 [count] on the CPU, whatever torch's defaults are."""
    return torch.zeros(count, dtype=torch.float32, device="cpu")
