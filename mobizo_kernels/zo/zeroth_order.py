"""From a batch to an updated model by forward passes only: one for a wrapped model, G for any other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from mobizo_kernels.journal import JournalWriter
from mobizo_kernels.journal.header import PathLike
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.loss.compiled import not_compiled
from mobizo_kernels.loss.sharing import StateStore
from mobizo_kernels.optim.optimizers import make_optimizer
from mobizo_kernels.optim.seeds import check_run_seed, query_seeds
from mobizo_kernels.optim.update_rule import UpdateRule
from mobizo_kernels.parameters import check_tuned, has_wrapped_parameters
from mobizo_kernels.parameters.directions import check_outer
from mobizo_kernels.zo.arguments import make_estimator, make_rule
from mobizo_kernels.zo.batches import Batch, listed_batches, losses_over
from mobizo_kernels.zo.estimators import Estimator
from mobizo_kernels.zo.graphed import GraphedSteps, check_graphable
from mobizo_kernels.zo.identity import identity
from mobizo_kernels.zo.models import model_to_tune
from mobizo_kernels.zo.objective import Objective, Shaping, check_shaping, shaped
from mobizo_kernels.zo.outputs import GroupLosses, StepOutput
from mobizo_kernels.zo.parameters import Holders, tuned_parameters, warn_of_eps
from mobizo_kernels.zo.recording import Recorded
from mobizo_kernels.zo.team import Team, TeamSettings
from mobizo_kernels.zo.trials import Trials, is_batched

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
Value = TypeVar("Value")


class ZerothOrder(Recorded):
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
        process_group: of torch.distributed, with which a step is made; `torch.distributed.group.WORLD` for
            all processes of torchrun. Scalars travel, nothing else: see docs/scale.md. Every process makes
            the same calls in the same order; the journal that rank 0 is given is written there alone.
        split: beside a group, "queries" (the default): each rank runs its part of the groups, on the same
            batch. "rows": each runs all groups, on a batch of its own. "both": `query_ranks` neighbours share
            the queries of a batch of their own.
        query_ranks: of "both", a divisor of the ranks.
        slices: forwards that the groups of a step are run in, as even as it comes out; by default one, or one
            for each rank that shares queries. Of equal slices the bits are equal, on any number of ranks.
        check_every: beside a group, steps between comparisons of all that was tuned; None for never.
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
        RanksDisagree: a ValueError, if ranks have other settings, bases, adapters or parameters. It names the
            rank and what differs.
        OSError: if `journal` exists without `resume`, or cannot be read or written.
        RankFailed: a RuntimeError, if another rank failed or is gone.
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
        process_group: ProcessGroup | None = None,
        split: str | None = None,
        query_ranks: int | None = None,
        slices: int | None = None,
        check_every: int | None = 100,
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
        several = process_group is not None
        self._team = Team(
            TeamSettings(self.estimator.groups, several, split, query_ranks, slices, check_every)
        )
        if cuda_graph and (several or self._team.split.slices > 1):
            raise ValueError("cuda_graph=True needs process_group=None and slices=None")
        with model_to_tune(model, several) as (self.model, compiled):
            self._set_up(candidate_tokens, store, compile or compiled, cuda_graph)
            if process_group is not None:
                self._join(process_group, journal, resume)
            elif journal is not None:
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
        tuned = tuned_parameters(model)
        self.optimizer = make_optimizer(tuned, self._rule, self.distribution)
        self._holders = Holders(model, tuned)
        if cuda_graph:
            check_graphable(model, self.optimizer, compile, store)
        self.loss = LabelledLoss(model, candidate_tokens=candidate_tokens, store=store, compile=compile)
        warn_of_eps(model, self.estimator.eps)
        self._trials = Trials(model, self.estimator, self.optimizer, self.distribution)
        if cuda_graph:
            self._graphed = GraphedSteps(self.loss, self.estimator, self.optimizer, self.distribution)

    @property
    def _captured(self) -> bool:
        return self._graphed is not None

    @property
    def rule(self) -> UpdateRule:
        """The update rule as it was given, before any schedule."""
        return self._rule

    @property
    def rank(self) -> int:
        """Of this process in the group; 0 without one."""
        return self._team.rank

    def join(self, process_group: ProcessGroup) -> None:
        """Make the steps from now on with the ranks of a group, after a worker was lost or has come.

        All of them call it. A rank that has missed steps, such as a new one, which has none, gets them from
        the journal of rank 0. State of a learning rate's schedule is the caller's.

        Raises:
            RanksDisagree: as the constructor, or if what was tuned is not the same then.
            ValueError: if rank 0, which has to have made all steps, has no journal of them; or if it did not
                write the journal of the run, which :meth:`close_journal` on all ranks lets go on without one.
            RankFailed: if another rank is gone.
        """
        self._join(process_group)

    def _join(
        self, process_group: ProcessGroup, journal: PathLike | None = None, resume: bool = False
    ) -> None:
        """:meth:`join`, and open the journal that rank 0 was given, in which all ranks take part."""
        if self._team.join(self, process_group, opens=journal is not None):
            self.apply(self.open_journal("" if journal is None else journal, resume=resume))

    def check_ranks(self) -> None:
        """Compare what all ranks have tuned, as every `check_every` steps do: at the end of a run, say.

        Raises:
            RanksDisagree: naming the rank that differs.
            RankFailed: if another rank is gone.
        """
        self._team.compare(self)

    def from_first(self, make: Callable[[], Value]) -> Value:
        """What `make` gives on rank 0, where alone it is called, on all ranks: what has to be the same, such
        as the outcome of an evaluation. If it raises an error there, RankFailed on the others.
        """
        return self._team.from_first(make, f"from_first() at step {self.steps}")

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
                with several batches, `model.compile()` was called after this was made, or a parameter is
                another tensor than then. The step can be tried again.
            JournalLost: if the journal is no longer what this run wrote. Nothing was updated.
            OSError: if the journal cannot be written. Nothing was updated; the step can be tried again.
            RuntimeError: if compile=True and a layer cannot be compiled. Nothing was updated.
        """
        seeds = query_seeds(self.run_seed, self.steps, self.estimator.queries)
        if self._graphed is None:
            losses, standing = self._team.losses(
                self._trials,
                lambda: losses_over(self.loss, self._checked(batch, objective, shaping), objective),
                seeds,
                step=self.steps,
                optimizer=self.optimizer,
                terms={"shaping": shaping, "objective": None if objective is None else "given"},
            )
            weighed = losses if shaping == "none" else shaped(losses, shaping)
            projected_grads = self.estimator.projected_gradients(weighed)
            record = self.optimizer.record(projected_grads, self.estimator.loss(losses), standing)
            self._on_journal(lambda journal: journal.append(self.steps, record), f"step {self.steps}")
            self.optimizer.apply(seeds, record)
            loss, applied = record.loss, record.applied
        else:
            batches = self._checked(batch, objective, shaping)
            losses, projected_grads, applied = self._graphed(batches[0], seeds)
            loss = self.estimator.loss(losses)
        if not applied:
            projected_grads = torch.full_like(projected_grads, float("nan"))
        output = StepOutput(self.steps, loss, losses, projected_grads, skipped=not applied)
        self.steps += 1
        self.skipped_steps += not applied
        return output

    def _checked(
        self, batch: Batch | Sequence[Batch], objective: Objective | None, shaping: str
    ) -> list[Batch]:
        """The batches of a step. Raises ValueError for whatever shows before a forward."""
        self._holders.check()
        for group in self.optimizer.param_groups:
            self.optimizer.rule_of(group)  # an option that is out of range shows before anything is changed
        check_shaping(shaping)
        if not self.loss.compiles and not_compiled(self.model)[1]:
            raise ValueError("model.compile() must come before ZerothOrder, or compile=True be given to it")
        batches = listed_batches(batch)
        if self._graphed is not None and (objective is not None or shaping != "none" or len(batches) > 1):
            raise ValueError("objective, shaping and several batches need cuda_graph=False")
        return batches

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
        if not is_batched(self.model):
            raise ValueError("losses needs a model wrapped by mobizo_kernels.wrap or wrap_parameters")
        if self._team.split.ranks > 1:
            raise ValueError("losses needs process_group=None: a rank alone has a part of them")
        self._holders.check()
        measured = losses_over(self.loss, listed_batches(batch), objective)
        seeds = query_seeds(self.run_seed, self.steps, self.estimator.queries)
        losses, _ = self._trials.losses(measured, seeds, self._team.split.groups_of(0))
        return GroupLosses(losses, sum(measured.weights()))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs besides the parameters: counters, settings, the optimizer's state."""
        return {
            "steps": self.steps,
            "skipped_steps": self.skipped_steps,
            "settings": identity(self),
            "optimizer": self.optimizer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the run that made `state` stopped.

        Raises:
            ValueError: if the settings of that run, its candidate tokens, or scalings, invocation tokens or
                LoRA-A of its adapter are not those of this one; nothing is changed then.
        """
        saved = state["settings"]
        for name, value in identity(self).items():
            # States of earlier versions say nothing of the adapter.
            if saved.get(name, value) != value:
                raise ValueError(f"{name} is {value!r} here, but the state was saved with {saved[name]!r}")
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps, self.skipped_steps = state["steps"], state["skipped_steps"]
