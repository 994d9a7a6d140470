"""zo_momentum, zo_adam and zo_sign against torch's optimizers on a materialised zeroth-order gradient.

    python -m benchmarks.cpu.bench_zo_optimizers [--json FILE] [--threads N] [--quick]

The peer draws the first direction, scaled, into a gradient that is kept, adds one more draw for each further
seed, and steps with the fastest that torch has: its fused SGD with momentum, its fused Adam, and `sign_` with
an addition. "signs" is the same with `random_` for the noise, which Rademacher is compared with as well. A
step of ours keeps no gradient, and its values and state follow from the seeds to the bit.

The limit is a memory pass over the parameter and its state, `x.mul_(1.0001)` of each. 2^14 values stay in
the cache, 2^22 do not. "60 LoRA-B" are those of SmolLM2-135M, all in one call of the foreach form.

Columns: ns per value, all seeds together; how many times faster than the peers; share of the speed of the
pass. All tensors are float32.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import product

import torch

from benchmarks.cpu.bench_perturb import COEFF, LORA_B_SHAPES
from benchmarks.harness import Report, Variant, parser, time_variants
from mobizo_kernels import ops
from mobizo_kernels.ops.checks import DISTRIBUTIONS

OPTIMIZERS = ("zo_momentum", "zo_adam", "zo_sign")
STATES = {"zo_momentum": 1, "zo_adam": 2, "zo_sign": 0}
BETAS, EPS, LR = (0.9, 0.999), 1e-8, 1e-4


class Problem:
    """Parameters and the state of an optimizer on torch's default device, and a step of either kind on them.

    Args:
        optimizer: one of `OPTIMIZERS`.
        shapes: of the parameters, float32.
        n_seeds: directions in a step.
    """

    def __init__(self, optimizer: str, shapes: Sequence[tuple[int, ...]], n_seeds: int) -> None:
        self._optimizer, self._n_seeds = optimizer, n_seeds
        self._params = [torch.randn(shape) for shape in shapes]
        self._states = [[torch.rand(shape) for shape in shapes] for _ in range(STATES[optimizer])]
        sizes = [param.numel() for param in self._params]
        self._gradient, self._more = torch.empty(sum(sizes)), torch.empty(sum(sizes))
        parts = self._gradient.split(sizes)
        self._grads = [part.view_as(param) for part, param in zip(parts, self._params, strict=True)]
        self._steps = [torch.tensor(9.0) for _ in shapes]

    def tensors(self) -> list[torch.Tensor]:
        """All that a step writes."""
        return [*self._params, *(tensor for state in self._states for tensor in state)]

    def our_step(self, distribution: str) -> Variant:
        """By the op, or by its foreach form where there are several parameters."""
        name, count = self._optimizer, self._n_seeds
        seeds, coeffs, lr = torch.arange(count), torch.full((count,), COEFF), torch.tensor([LR])
        rates = () if name == "zo_momentum" else (lr,)
        numbers = {"zo_momentum": BETAS[:1], "zo_adam": (*BETAS, EPS), "zo_sign": ()}[name]
        rest = (*numbers, 1.0, distribution)
        if len(self._params) == 1:
            return partial(getattr(ops, name), *self.tensors(), seeds, coeffs, *rates, 0, *rest)
        streams, foreach = list(range(len(self._params))), getattr(ops, f"foreach_{name}_")
        return partial(foreach, self._params, *self._states, seeds, coeffs, *rates, streams, *rest)

    def torch_step(self, distribution: str) -> Variant:
        """The gradient drawn into memory, and the fastest that torch has to step along it."""
        draw = self._draw_gaussian if distribution == "gaussian" else self._draw_signs
        step = {"zo_momentum": self._sgd, "zo_adam": self._adam, "zo_sign": self._sign}[self._optimizer]
        return lambda: (draw(), step())

    def _draw_gaussian(self) -> None:
        """sum_i COEFF * z_i, one draw for all parameters."""
        self._gradient.normal_(0.0, COEFF)
        for _ in range(self._n_seeds - 1):
            self._gradient.add_(self._more.normal_(), alpha=COEFF)

    def _draw_signs(self) -> None:
        """The same with signs, by way of 0 and 1."""
        self._gradient.random_(0, 2).sub_(0.5).mul_(2 * COEFF)
        for _ in range(self._n_seeds - 1):
            self._gradient.add_(self._more.random_(0, 2).sub_(0.5), alpha=2 * COEFF)

    def _sgd(self) -> None:
        torch._fused_sgd_(
            self._params, self._grads, self._states[0], weight_decay=0.0, momentum=BETAS[0], lr=LR,
            dampening=0.0, nesterov=False, maximize=False, is_first_step=False,
        )  # fmt: skip

    def _adam(self) -> None:
        torch._fused_adam_(
            self._params, self._grads, *self._states, [], self._steps, lr=LR, beta1=BETAS[0],
            beta2=BETAS[1], weight_decay=0.0, eps=EPS, amsgrad=False, maximize=False,
        )  # fmt: skip

    def _sign(self) -> None:
        torch._foreach_sign_(self._grads)
        torch._foreach_add_(self._params, self._grads, alpha=-LR)


def compare(
    report: Report,
    rounds: int,
    label: str,
    shapes: Sequence[tuple[int, ...]],
    optimizer: str,
    n_seeds: int,
    distribution: str,
) -> None:
    """Add one row."""
    problem = Problem(optimizer, shapes, n_seeds)
    timings = time_variants(
        {
            "ours": problem.our_step(distribution),
            "torch": problem.torch_step("gaussian"),
            "signs": problem.torch_step("rademacher"),
            "pass": lambda: torch._foreach_mul_(problem.tensors(), 1.0001),
        },
        rounds,
    )
    own = timings["ours"].p50
    report.add(
        {
            "threads": torch.get_num_threads(),
            "optimizer": optimizer,
            "values": label,
            "seeds": n_seeds,
            "distribution": distribution,
        },
        timings,
        {
            "ns": timings["ours"].show(1e9 / sum(math.prod(shape) for shape in shapes)),
            "x torch": timings["torch"].p50 / own,
            "x signs": timings["signs"].p50 / own if distribution == "rademacher" else "-",
            "of pass": timings["pass"].p50 / own,
        },
    )


@torch.no_grad()
def main() -> None:
    options = parser(__doc__).parse_args()
    report = Report("zo_optimizers", options)
    rounds, powers = (3, (10, 14)) if options.quick else (11, (14, 22))
    cases: list[tuple[str, Sequence[tuple[int, ...]]]] = [
        *((f"2^{power}", [(2**power,)]) for power in powers),
        ("60 LoRA-B", LORA_B_SHAPES),
    ]
    for threads, optimizer, (label, shapes), n_seeds, distribution in product(
        sorted({1, options.threads}), OPTIMIZERS, cases, (1, 4), DISTRIBUTIONS
    ):
        torch.set_num_threads(threads)
        compare(report, rounds, label, shapes, optimizer, n_seeds, distribution)
    report.finish()


if __name__ == "__main__":
    main()
