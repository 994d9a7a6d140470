"""The arguments of a trainer: those of the library, and what a zeroth-order step wants to know."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from mobizo_kernels.ops.checks import require_distribution
from mobizo_kernels.zo import Estimator, make_estimator, make_rule


@dataclass
class ZOArguments:
    """What a run without gradients has of its own, to be mixed into arguments of transformers or TRL.

    Those that it shares with any run mean what they mean there: `learning_rate`, `lr_scheduler_type`,
    `weight_decay`, `adam_beta1`, `adam_beta2`, `adam_epsilon`, and `seed`, which gives all directions.

    Args:
        queries: q, random directions in each step.
        eps: size of a perturbation; 1e-2 suits LoRA and 1e-3 full parameters.
        estimator: "two_sided" (2q copies of a batch in one forward), "one_sided" (q + 1) or "centred" (q).
        distribution: of the directions, "gaussian", "rademacher" or "outer".
        optimizer: "sgd", "adam" or "sign".
        momentum: of "sgd", in [0, 1).
        normalize: divide by the spread of the step's losses, not by eps (FZOO, arXiv 2506.09034): a learning
            rate then does not depend on the scale of the loss.
        learning_rate: what a step goes along each direction; far larger than that of AdamW.
        lr_scheduler_type: as of transformers.
        max_grad_norm: 0, there being no gradient to clip.

    Raises:
        ValueError: naming the argument, if one is out of range.
    """

    queries: int = field(default=4, metadata={"help": "Random directions in each step."})
    eps: float = field(default=1e-2, metadata={"help": "Size of a perturbation."})
    estimator: str = field(default="two_sided", metadata={"help": "two_sided, one_sided or centred."})
    distribution: str = field(default="gaussian", metadata={"help": "gaussian, rademacher or outer."})
    optimizer: str = field(default="sgd", metadata={"help": "sgd, adam or sign."})
    momentum: float = field(default=0.0, metadata={"help": "Of sgd, in [0, 1)."})
    normalize: bool = field(default=True, metadata={"help": "Divide by the spread of a step's losses."})
    learning_rate: float = field(default=5e-2, metadata={"help": "What a step goes along a direction."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "0: there is no gradient to clip."})

    def __post_init__(self) -> None:
        super().__post_init__()  # type: ignore[misc]  # of the arguments that these are mixed into
        self.make_estimator()
        make_rule(**self.rule_arguments())
        require_distribution(self.distribution)

    def make_estimator(self) -> Estimator:
        """The estimator of the steps. Raises ValueError if an argument is out of range."""
        return make_estimator(self.estimator, queries=self.queries, eps=self.eps, normalize=self.normalize)

    def rule_arguments(self) -> dict[str, Any]:
        """What :func:`mobizo_kernels.zo.make_rule` makes the update rule of."""
        given: dict[str, Any] = {
            "optimizer": self.optimizer, "lr": self.learning_rate, "weight_decay": self.weight_decay,  # type: ignore[attr-defined]
        }  # fmt: skip
        if self.optimizer == "adam":
            given["betas"] = (self.adam_beta1, self.adam_beta2)  # type: ignore[attr-defined]
            given["adam_eps"] = self.adam_epsilon  # type: ignore[attr-defined]
        return {**given, "momentum": self.momentum}


@dataclass
class ZOConfig(ZOArguments, TrainingArguments):
    """`transformers.TrainingArguments` and :class:`ZOArguments` in one."""


def check_trainer(trainer: type, mixin: type, given: Mapping[str, Any]) -> None:
    """Raise ValueError for what a trainer was given, or overrides, that a step would silently leave out.

    Args:
        trainer: its class.
        mixin: the class of ours in it.
        given: the arguments of its constructor, by name.
    """
    args = given.get("args")
    if not isinstance(args, ZOArguments):
        raise ValueError(f"args must be a ZOConfig, or have ZOArguments mixed in, got {type(args).__name__}")
    for name, expected, why in (
        ("optim", TrainingArguments.optim, "optimizer=... names one of ours"),
        ("optim_target_modules", None, "what is tuned is what requires a gradient"),
        ("max_grad_norm", 0, "there is no gradient to clip; normalize=True bounds a step"),
        ("fp16", False, "no loss is scaled; load the model in float16, or set bf16=True"),
        ("label_smoothing_factor", 0, "the loss is the cross-entropy, or an objective"),
        ("neftune_noise_alpha", None, "the directions are the noise"),
        ("n_gpu", (0, 1), "a process has one: start one for each by torchrun, or set CUDA_VISIBLE_DEVICES"),
    ):
        value = getattr(args, name)
        allowed = expected if isinstance(expected, tuple) else (expected,)
        if value not in allowed and not (value is None and expected == 0):
            raise ValueError(f"{name} must be {allowed[-1]}, got {value}: {why}")
    if hasattr(given.get("model"), "_orig_mod"):
        raise ValueError("model must be what torch.compile was given: torch_compile=True compiles its layers")
    for name in ("deepspeed", "fsdp"):
        if getattr(args, name, None):
            raise ValueError(
                f"{name} must be left out: nothing has gradients or states to shard; use torchrun"
            )
    for name in ("optimizers", "optimizer_cls_and_kwargs"):
        value = given.get(name)
        if value is not None and value != (None, None):
            raise ValueError(f"{name} must be left out: optimizer=... of the ZOConfig names one of ours")
    if given.get("compute_loss_func") is not None:
        raise ValueError(
            "compute_loss_func must be left out: an objective=... of the trainer can be any loss"
        )
    for owner in inspect.getmro(trainer):
        if owner is mixin:
            break
        for name in ("compute_loss", "training_step"):
            if name in vars(owner):
                raise ValueError(
                    f"{owner.__name__}.{name} must go: a step does not call it; objective=... of the trainer "
                    "can be any loss"
                )
