"""`transformers.Trainer` whose step is forward passes only."""

from __future__ import annotations

import dataclasses
import inspect
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import nn
from transformers import Trainer

from mobizo_kernels.integrations.arguments import check_trainer
from mobizo_kernels.integrations.checkpoints import begin_journal, keep_journal, resume_journal
from mobizo_kernels.lora import bare, is_wrapped, load_adapter, saved_adapter, to_peft
from mobizo_kernels.parameters import has_wrapped_parameters
from mobizo_kernels.zo import Objective, StepOutput, ZerothOrder

STATE = "zeroth_order.pt"

if TYPE_CHECKING:
    _Trainer = Trainer
else:
    _Trainer = object


class ZOTrainerMixin(_Trainer):
    """Put before a Trainer in a list of base classes, makes it one without gradients.

    The model is a PeftModel, whose adapter is back in it after :meth:`train`; one of
    :func:`mobizo_kernels.wrap`; or any other causal LM, whose parameters that require a gradient are tuned
    then. It is in eval mode during a step: dropout does not act. Everything that Trainer does around a step
    stays: data, schedules, logs, callbacks, evaluation and checkpoints. The micro-batches of
    `gradient_accumulation_steps` make one estimate, weighted by labelled tokens. `grad_norm` in the logs is
    the root of the mean squared slope along the step's directions, whose expectation is the gradient's norm.

    Started by torchrun or `accelerate launch`, each process takes the losses of the rows that Trainer's
    sampler gives it. The losses travel, and all make the same update: no DDP is put around the model.

    Args:
        args: a :class:`ZOConfig`, or other arguments with :class:`ZOArguments`.
        objective: what is minimised in place of the cross-entropy, see :meth:`ZerothOrder.step`.
        others: as the Trainer takes them.

    Attributes:
        zo: the :class:`ZerothOrder` of the last or running :meth:`train`, None before.

    Raises:
        ValueError: naming the argument, if one has no meaning without gradients, or if a process has several
            GPUs.
    """

    # Typed anew: Trainer's own types do not know what train() makes sure of.
    args: Any
    model: Any
    objective: Objective | None
    zo: ZerothOrder | None

    def __init__(self, *args: Any, objective: Objective | None = None, **kwargs: Any) -> None:
        given = inspect.signature(super().__init__).bind_partial(*args, **kwargs).arguments
        check_trainer(type(self), ZOTrainerMixin, given)
        self.zo = None
        self.objective = objective
        self._micro_batches: list[Any] = []
        self._output: StepOutput | None = None
        self._checkpoint: Path | None = None  # that the run goes on from
        self._gives_back = False
        super().__init__(*args, **kwargs)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As of Trainer. Overridden to let the journal go, and to give a PeftModel its adapter back, however
        the run ends.
        """
        self._checkpoint, self._gives_back = None, False
        try:
            return super().train(*args, **kwargs)
        finally:
            try:
                if self.zo is not None and self.zo.journal is not None:
                    self.zo.journal.close()
            finally:  # also where the disk fails
                if self._gives_back and is_wrapped(self.model):
                    to_peft(self.model)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Make :attr:`zo` and give its optimizer to Trainer, whose schedule drives the learning rate. Each
        run has its own, with directions from its first step on.
        """
        args: Any = self.args
        self._micro_batches, self._output = [], None
        whole = getattr(self.model, "_orig_mod", self.model)
        self._gives_back |= isinstance(whole, PeftModel) and not is_wrapped(whole)
        several: dict[str, Any] = {}
        if args.world_size > 1:
            several = {"process_group": dist.group.WORLD, "split": "rows"}
            for parameter in whole.parameters():  # those of PEFT's are drawn anew in every process
                if parameter.requires_grad:
                    dist.broadcast(parameter.data, 0)
        with self.accelerator.autocast():  # in which the model was prepared, if this is not its first run
            self.zo = ZerothOrder(
                self.model,
                estimator=args.make_estimator(),
                distribution=args.distribution,
                run_seed=args.seed,
                compile=args.torch_compile,
                **several,
                **args.rule_arguments(),
            )
        if is_wrapped(self.zo.model):
            directory = Path(args.output_dir)
            if self._checkpoint is None:
                begin_journal(self.zo, directory)
            else:
                resume_journal(self.zo, self._checkpoint, directory)
        self.optimizer = self.zo.optimizer
        return self.optimizer

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> Any:
        """Overridden because accelerate would put DDP around the model, whose gradients are none."""
        whole = self.accelerator.prepare_model
        self.accelerator.prepare_model = partial(whole, evaluation_mode=True)
        try:
            return super()._prepare_for_training(*args, **kwargs)
        finally:
            del self.accelerator.prepare_model

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """Keep a micro-batch, or make the step over all that were kept: there is nothing to accumulate in."""
        assert self.zo is not None
        self._micro_batches.append(self._prepare_inputs(inputs))
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        batches, self._micro_batches = self._micro_batches, []
        self.model.eval()
        with self.accelerator.autocast():
            self._output = self.zo.step(batches, objective=self.objective)
        return torch.tensor(self._output.loss, device=self.args.device)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> float:
        """Overridden for the log, which would say 0: parameters have no gradients."""
        assert self.zo is not None and self._output is not None
        estimator = dataclasses.replace(self.zo.estimator, normalize=False)
        return estimator.projected_gradients(self._output.losses).double().square().mean().sqrt().item()

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Overridden to put what a resumed run needs beside it: the journal, or the number of steps."""
        assert self.zo is not None
        super()._save_optimizer_and_scheduler(output_dir)
        keep_journal(self.zo, Path(output_dir))  # rank 0 has it
        if not is_wrapped(self.zo.model) and self.args.should_save:
            state = self.zo.state_dict()
            del state["optimizer"]  # which Trainer saves
            torch.save(state, Path(output_dir) / STATE)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Overridden to read that again; the journal was by :meth:`create_optimizer`."""
        assert self.zo is not None
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and not is_wrapped(self.zo.model):
            state = torch.load(Path(checkpoint) / STATE, weights_only=True)
            self.zo.load_state_dict({**state, "optimizer": self.zo.optimizer.state_dict()})

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Overridden because an adapter is made again from its journal, by :meth:`create_optimizer`."""
        whole = getattr(self.model, "_orig_mod", self.model)
        both = has_wrapped_parameters(self.model)  # factors of a LoRA are tuned, which stays PEFT's
        if is_wrapped(self.model) or (isinstance(whole, PeftModel) and not both):
            self._checkpoint = Path(resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        """Overridden because Trainer looks for adapters of PEFT's."""
        if is_wrapped(self.model):
            model = bare(self.model)
            load_adapter(model, saved_adapter(model, str(self.state.best_model_checkpoint)))
        else:
            super()._load_best_model()


class ZOTrainer(ZOTrainerMixin, Trainer):
    """`transformers.Trainer` without gradients, see :class:`ZOTrainerMixin`."""
