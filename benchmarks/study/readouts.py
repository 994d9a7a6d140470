"""What one pass gives without this package: a linear classifier on states of the frozen model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from mobizo_kernels.data import EncodedExample, collate, evaluation_batches

PENALTIES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1)
"""C of scikit-learn, on standardised states of which there are about as many as rows."""


class LayerStates:
    """The states of the last prompt token behind each layer, of rows that are forwarded once for all the runs
    that want them. A run is charged what they took.

    Args:
        model: a causal LM of transformers, unwrapped.
        pad: token.
    """

    def __init__(self, model: Any, pad: int) -> None:
        self.model, self._pad = model, pad
        self._rows: dict[tuple[int, ...], tuple[NDArray[np.float32], float]] = {}

    def __call__(self, rows: Sequence[EncodedExample]) -> NDArray[np.float32]:
        """Of n rows, [n, layers + 1, H]."""
        new = [row for row in rows if _prompt(row) not in self._rows]
        for batch in evaluation_batches(new):
            self._forward([new[row] for row in batch])
        return np.stack([self._rows[_prompt(row)][0] for row in rows])

    def seconds(self, rows: Sequence[EncodedExample]) -> float:
        """Processor time that their forwards took."""
        return sum(self._rows[_prompt(row)][1] for row in rows)

    @torch.inference_mode()
    def _forward(self, rows: list[EncodedExample]) -> None:
        started = time.process_time()
        tokens = collate(rows, self._pad)
        ids, mask = tokens["input_ids"][:, :-1], tokens["attention_mask"][:, :-1]
        states = self.model.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        found = torch.stack([state[:, -1] for state in states], dim=1).float().numpy()
        each = (time.process_time() - started) / len(rows)
        for row, state in zip(rows, found, strict=True):
            self._rows[_prompt(row)] = state, each


class LayerReadout:
    """A logistic regression on the states of the last prompt token behind one layer, or several at once.

    Args:
        states: of the rows.
        train: rows that it is fitted to.
        validation: rows by which the layer and the penalty are chosen.
        several: take every second layer of the upper two thirds together, not the best one of all.
    """

    def __init__(
        self,
        states: LayerStates,
        train: list[EncodedExample],
        validation: list[EncodedExample],
        several: bool,
    ) -> None:
        self._states = states
        layers = states.model.config.num_hidden_layers
        choices = (
            [list(range(layers // 3, layers + 1, 2))]
            if several
            else [[n] for n in range(layers // 3, layers + 1)]
        )
        seen, held_out = self._states(train), self._states(validation)
        labels, expected = (np.array([row.label for row in rows]) for rows in (train, validation))
        best = np.inf
        for chosen in choices:
            scaler = StandardScaler().fit(_joined(seen, chosen))
            inputs, tried = (scaler.transform(_joined(states, chosen)) for states in (seen, held_out))
            for penalty in PENALTIES:
                solver = LogisticRegression(C=penalty / len(chosen), class_weight="balanced", max_iter=300)
                loss = log_loss(expected, solver.fit(inputs, labels).predict_proba(tried))
                if loss < best:
                    best, self.layers, self.penalty = loss, chosen, penalty
                    self._scaler, self._solver = scaler, solver

    def probabilities(self, rows: list[EncodedExample]) -> NDArray[np.float64]:
        """Of each label, [n, C]."""
        found: NDArray[np.float64] = self._solver.predict_proba(
            self._scaler.transform(_joined(self._states(rows), self.layers))
        )
        return found


def _prompt(row: EncodedExample) -> tuple[int, ...]:
    return tuple(row.input_ids[: -row.targets])


def _joined(states: NDArray[np.float32], layers: list[int]) -> NDArray[np.float32]:
    return states[:, layers].reshape(len(states), -1)
