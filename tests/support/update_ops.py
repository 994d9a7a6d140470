"""The updates, as the tests of what they have in common call them: a table of their arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from mobizo_kernels import ops, reference

LR = torch.tensor([0.01])

BadArguments = list[tuple[dict[str, Any], str]]


def normal(shape: tuple[int, ...], rng: torch.Generator, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(shape, generator=rng)


def positive(shape: tuple[int, ...], rng: torch.Generator) -> torch.Tensor:
    return 0.01 * torch.rand(shape, generator=rng)


@dataclass(frozen=True)
class UpdateOp:
    """An op of signature `(param, *state, seeds, coeffs, [lr], stream, *numbers, decay, distribution)`.

    Attributes:
        name: of the op.
        state: what it keeps for each parameter, and what makes one.
        numbers: that follow the stream.
        takes_lr: whether it is given a rate.
        lists: what its foreach form calls the parameter and its state; empty if there is none.
        wrong: arguments of its own that it refuses, and what it says, each alone.
        wrong_lists: the same for its foreach form alone.
    """

    name: str
    state: dict[str, Callable[[tuple[int, ...], torch.Generator], torch.Tensor]] = field(default_factory=dict)
    numbers: dict[str, float] = field(default_factory=dict)
    takes_lr: bool = False
    lists: tuple[str, ...] = ()
    wrong: BadArguments = field(default_factory=list)
    wrong_lists: BadArguments = field(default_factory=list)

    @property
    def names(self) -> tuple[str, ...]:
        """What it writes to."""
        return ("param", *self.state)

    @property
    def functional(self) -> Callable[..., torch.Tensor]:
        return getattr(ops, self.name)

    @property
    def out(self) -> Callable[..., torch.Tensor]:
        return getattr(torch.ops.mobizo, self.name).out

    @property
    def foreach_name(self) -> str:
        return f"foreach_{self.name}_"

    @property
    def foreach(self) -> Callable[..., None]:
        return getattr(ops, self.foreach_name)

    @property
    def reference(self) -> Callable[..., tuple[Any, ...]]:
        """Gives what each tensor becomes, and the norm."""
        return getattr(reference, self.name)

    def tensors(
        self, shape: tuple[int, ...], dtype: torch.dtype, rng: torch.Generator
    ) -> tuple[torch.Tensor, ...]:
        """A parameter and its state."""
        return normal(shape, rng).to(dtype), *(make(shape, rng) for make in self.state.values())

    def arguments(
        self,
        directions: tuple[torch.Tensor, torch.Tensor],
        stream: int | Sequence[int],
        decay: float,
        distribution: str = "gaussian",
        lr: torch.Tensor = LR,
    ) -> tuple[Any, ...]:
        """What follows the tensors, or the lists of them."""
        rate = (lr,) if self.takes_lr else ()
        return *directions, *rate, stream, *self.numbers.values(), decay, distribution

    def accepted(self) -> dict[str, Any]:
        """By name, what follows the tensors, without the stream: a call that is fine."""
        common = {"seeds": torch.tensor([1, 2]), "coeffs": torch.ones(2)}
        return {**common, **({"lr": torch.ones(1)} if self.takes_lr else {}), **self.numbers}

    def __str__(self) -> str:
        return self.name


WRONG: BadArguments = [
    ({"param": torch.ones(3, dtype=torch.int64)}, "param.* must be float32, bfloat16 or float16, got int64"),
    ({"seeds": torch.ones(2)}, "seeds .*int64"),
    ({"coeffs": torch.ones(3)}, "coeffs"),
    ({"distribution": "uniform"}, "distribution .*'uniform'"),
]
WRONG_OUT: BadArguments = [
    ({"out": torch.ones(2)}, "out must be float32 of shape"),
    ({"out": torch.ones(1, dtype=torch.float64)}, "out .*float32"),
    ({"out": torch.tensor(1.0)}, "out must be float32 of shape"),
]
WRONG_LISTS: BadArguments = [
    ({"streams": [1]}, r"streams must have one entry per parameter \(2\), got 1"),
]
WRONG_LR: BadArguments = [
    ({"lr": torch.tensor(1.0)}, r"lr must be float32 of shape \(1,\), got float32 of shape \(\)"),
    ({"lr": torch.ones(1, dtype=torch.float64)}, r"lr must be float32 of shape \(1,\), got float64"),
    ({"lr": torch.ones(2)}, r"lr must be float32 of shape \(1,\), got float32 of shape \(2,\)"),
]

UPDATE = UpdateOp("zo_update")
MOMENTUM = UpdateOp(
    "zo_momentum",
    state={"momentum": normal},
    numbers={"beta": 0.9},
    lists=("params", "momenta"),
    wrong=[
        ({"momentum": torch.ones(3, dtype=torch.bfloat16)}, "moment.* must be float32, got bfloat16"),
        ({"momentum": torch.ones(4)}, r"moment.* must have the shape of its parameter, \(3,\), got \(4,\)"),
        (
            {"momentum": torch.ones(3, 1)},
            r"moment.* must have the shape of its parameter, \(3,\), got \(3, 1\)",
        ),
    ],
    wrong_lists=[({"momenta": []}, r"momenta must have one entry per parameter \(2\), got 0")],
)
ADAM = UpdateOp(
    "zo_adam",
    state={"exp_avg": partial(normal, scale=0.1), "exp_avg_sq": positive},
    numbers={"beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
    takes_lr=True,
    lists=("params", "exp_avgs", "exp_avg_sqs"),
    wrong=[
        ({"exp_avg": torch.ones(3, dtype=torch.bfloat16)}, "exp_avg.* must be float32, got bfloat16"),
        ({"exp_avg_sq": torch.ones(3, dtype=torch.float16)}, "exp_avg_sq.* must be float32, got float16"),
        ({"exp_avg": torch.ones(4)}, r"exp_avg.* must have the shape of its parameter, \(3,\), got \(4,\)"),
        ({"exp_avg_sq": torch.ones(1, 3)}, r"exp_avg_sq.* must have the shape .*\(3,\), got \(1, 3\)"),
        *WRONG_LR,
    ],
    wrong_lists=[
        ({"exp_avgs": []}, r"exp_avgs must have one entry per parameter \(2\), got 0"),
        ({"exp_avg_sqs": []}, r"exp_avg_sqs must have one entry per parameter \(2\), got 0"),
    ],
)
SIGN = UpdateOp("zo_sign", takes_lr=True, lists=("params",), wrong=WRONG_LR)

UPDATES = (UPDATE, MOMENTUM, ADAM, SIGN)
