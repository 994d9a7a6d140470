"""The methods of a training program as they are, for loops of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from mobizo_kernels.executorch import _trainer


class ProgramMethods:
    """What :class:`mobizo_kernels.executorch.Trainer` has of its program, one call each."""

    _native: _trainer.Trainer

    def train_step(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        target_positions: NDArray[np.int64],
        target_ids: NDArray[np.int64],
        seeds: NDArray[np.int64],
        coeffs: NDArray[np.float32],
        update_seeds: NDArray[np.int64] | None = None,
        update_coeffs: NDArray[np.float32] | None = None,
        update_lr: float = 0.0,
        update_decay: float = 1.0,
    ) -> tuple[NDArray[np.float32], float]:
        """An update, if there is one, then the losses [G] of a batch under the new seeds, for own loops.

        That is the program's method `train_step`; where the optimizer is more than plain SGD, the method
        `update` before it. In a delegated program the trainer makes the update itself.

        Args:
            input_ids: int64 [B, T], padded on the left; in a program with invocation tokens so that these
                begin in column T - tail_length, and on the right.
            attention_mask: int64 [B, T], 0 at padding.
            target_positions: int64 [B, K]; the logits there predict the targets.
            target_ids: int64 [B, K], -100 for no target.
            seeds: int64 [G], of the perturbation of each group.
            coeffs: float32 [G], its signed size.
            update_seeds: int64 [q], of the update; None for no update, which changes nothing.
            update_coeffs: float32 [q]: projected gradients times -lr / q for "sgd", times 1 / q for others.
            update_lr: rate of an update by "adam", see :meth:`mobizo_kernels.optim.UpdateRule.rate`, or
                "sign".
            update_decay: factor on B, if the program has weight decay.

        Returns:
            The losses, float32 [G], and the L2 norm of the update, weight decay apart.

        Raises:
            ValueError: naming the argument, if dtype or shape do not fit.
        """
        batch = (input_ids, attention_mask, target_positions, target_ids)
        update = (update_seeds, update_coeffs, update_lr, update_decay)
        return self._native.train_step(*batch, seeds, coeffs, *update)

    def evaluate_batch(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        target_positions: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """The program's method: logits float32 [E, K, C] of exactly E rows; arguments as for `train_step`."""
        return self._native.evaluate_batch(input_ids, attention_mask, target_positions)

    def update(
        self,
        update_seeds: NDArray[np.int64],
        update_coeffs: NDArray[np.float32],
        update_lr: float = 0.0,
        update_decay: float = 1.0,
    ) -> float:
        """The program's method: the update alone, arguments as for :meth:`train_step`; its L2 norm."""
        return self._native.update(update_seeds, update_coeffs, update_lr, update_decay)
