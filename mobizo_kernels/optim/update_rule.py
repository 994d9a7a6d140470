"""What a step makes of its estimate: the rule of its update, as optimizers, journals and programs name it."""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import Any, get_args

import torch

from mobizo_kernels.choices import Optimizer
from mobizo_kernels.files.strict_json import member, number, of_kind

OPTIMIZERS: tuple[str, ...] = get_args(Optimizer)


@dataclass(frozen=True)
class UpdateRule:
    """An optimizer and its numbers. Made by :meth:`sgd`, :meth:`adam` or :meth:`sign`.

    Two rules are equal if they differ in `lr` alone: schedules change that during a run, and programs take it
    as an input.

    Args:
        name: "sgd", "adam" (arXiv 1412.6980) or "sign" (signSGD, arXiv 1802.04434).
        momentum: of "sgd", in [0, 1).
        betas: of "adam", both in [0, 1): decay of the mean of the estimate and of that of its square.
        eps: of "adam", above 0 in float32: what is added to the root of the mean square.
        weight_decay: decoupled, as in AdamW (arXiv 1711.05101).
        lr: learning rate before any schedule; of a different kind for each optimizer.

    Raises:
        ValueError: naming the number, if one is out of range or of another optimizer.
    """

    name: str = "sgd"
    momentum: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    lr: float = field(default=1e-3, compare=False, kw_only=True)

    @classmethod
    def sgd(cls, lr: float = 1e-3, *, momentum: float = 0.0, weight_decay: float = 0.0) -> UpdateRule:
        """Stochastic gradient descent, see :class:`ZOSGD`.

        Args:
            lr: learning rate.
            momentum: in [0, 1); above 0 it keeps one float32 buffer of the size of each parameter.
            weight_decay: decoupled.

        Raises:
            ValueError: naming the number, if one is out of range.
        """
        return cls("sgd", momentum=momentum, weight_decay=weight_decay, lr=lr)

    @classmethod
    def adam(
        cls,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> UpdateRule:
        """Adam, see :class:`ZOAdam`.

        Args:
            lr: learning rate; a parameter moves by about as much in each of the first steps.
            betas: both in [0, 1): decay of the mean of the estimate and of that of its square.
            eps: above 0.
            weight_decay: decoupled.

        Raises:
            ValueError: naming the number, if one is out of range.
        """
        return cls("adam", betas=betas, eps=eps, weight_decay=weight_decay, lr=lr)

    @classmethod
    def sign(cls, lr: float = 1e-3, *, weight_decay: float = 0.0) -> UpdateRule:
        """signSGD, see :class:`ZOSign`.

        Args:
            lr: learning rate, by which every parameter moves in every step.
            weight_decay: decoupled.

        Raises:
            ValueError: naming the number, if one is out of range.
        """
        return cls("sign", weight_decay=weight_decay, lr=lr)

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {', '.join(OPTIMIZERS)}, got {self.name!r}")
        for name in ("lr", "momentum", "eps", "weight_decay"):
            check_number(name, getattr(self, name))
        if not 0 <= self.lr <= torch.finfo(torch.float32).max:
            raise ValueError(f"lr must be at least 0 and finite in float32, got {self.lr}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")
        if self.momentum and self.name != "sgd":
            raise ValueError(f"momentum must be 0 with optimizer {self.name!r}, got {self.momentum}")
        for beta in self.betas:
            check_number("betas", beta)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must be two numbers in [0, 1), got {self.betas}")
        object.__setattr__(self, "betas", tuple(self.betas))
        if not is_positive_float32(self.eps):
            raise ValueError(f"eps of adam must be positive and finite in float32, got {self.eps}")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise ValueError(f"weight_decay must be finite and at least 0, got {self.weight_decay}")

    @property
    def plain(self) -> bool:
        """p = p + sum_k coeffs[k] z_k and nothing else: steps without state, which may be lined up."""
        return self.name == "sgd" and not self.momentum and not self.weight_decay

    @property
    def state(self) -> tuple[str, ...]:
        """Names of the float32 tensors, of the shape of the parameter, that are kept for each parameter."""
        if self.name == "adam":
            return ("exp_avg", "exp_avg_sq")
        return ("momentum_buffer",) if self.momentum else ()

    @property
    def takes_rate(self) -> bool:
        """Whether an update is given its rate; that of "sgd" is in the coefficients."""
        return self.name != "sgd"

    def as_json(self) -> dict[str, Any]:
        """The name and the numbers that belong to it, but for `lr`."""
        own: dict[str, dict[str, float]] = {
            "sgd": {"momentum": self.momentum},
            "adam": {"beta1": self.betas[0], "beta2": self.betas[1], "eps": self.eps},
            "sign": {},
        }
        return {"name": self.name, **own[self.name], "weight_decay": self.weight_decay}

    @classmethod
    def from_json(cls, values: Any, lr: float = 1e-3) -> UpdateRule:
        """The rule whose :meth:`as_json` is `values`.

        Raises:
            ValueError: naming the member that is missing, unknown, of the wrong type, or out of range.
                executorch_ops/trainer/files/update_rule.cpp refuses the same in the same words.
        """
        name = member(values, "name", partial(of_kind, str))
        if name not in OPTIMIZERS:
            raise ValueError(f"name must be one of {', '.join(OPTIMIZERS)}, got '{name}'")
        numbers: dict[str, Any] = {own: member(values, own, number) for own in list(cls(name).as_json())[1:]}
        for other in values:
            if other not in {"name", *numbers}:
                raise ValueError(f"'{other}' is unknown")
        if name == "adam":
            numbers["betas"] = (numbers.pop("beta1"), numbers.pop("beta2"))
        return cls(name, **numbers, lr=lr)

    def coefficient(self, lr: float, queries: int) -> float:
        """What a projected gradient is multiplied by to give its direction's coefficient, at the rate `lr`.

        The step itself for "sgd", -lr / q, so that momentum is a mean of steps; the mean over the q queries
        for the others, 1 / q, whose updates are given the rate apart.
        """
        return -lr / queries if self.name == "sgd" else 1.0 / queries

    def rate(self, lr: float, updates: int) -> float:
        """The rate of an update before which there were `updates`: `lr`, for "adam" with the correction of
        both means for having begun at 0 (Kingma & Ba, section 2, in the order that they recommend).
        """
        if self.name != "adam":
            return lr
        first, second = (1.0 - beta ** (updates + 1) for beta in self.betas)
        return lr * math.sqrt(second) / first

    def decay(self, lr: float) -> float:
        """What an update multiplies the parameters by."""
        return 1.0 - lr * self.weight_decay


def check_number(name: str, value: object) -> None:
    """Raise ValueError, naming the argument, for what is no number, such as a text of a settings file."""
    if not isinstance(value, Real):
        raise ValueError(f"{name} must be a number, got {value!r}")


def is_positive_float32(value: float) -> bool:
    """Whether a number is above 0 and finite in float32, as kernels and files have it."""
    return 0 < ctypes.c_float(value).value < math.inf  # no tensor: a step that is captured makes rules
