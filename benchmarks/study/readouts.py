"""What one pass gives without this package: a linear classifier on states of the frozen model."""

from __future__ import annotations

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


class LayerReadout:
    """A logistic regression on the states of the last prompt token behind one layer, or several at once.

    Args:
        model: a causal LM of transformers, unwrapped.
        train: rows that it is fitted to.
        validation: rows by which the layer and the penalty are chosen.
        several: take every second layer of the upper two thirds together, not the best one of all.
        pad: token.
    """

    def __init__(
        self,
        model: Any,
        train: list[EncodedExample],
        validation: list[EncodedExample],
        several: bool,
        pad: int,
    ) -> None:
        self._model, self._pad = model, pad
        layers = model.config.num_hidden_layers
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

    @torch.inference_mode()
    def _states(self, rows: list[EncodedExample]) -> NDArray[np.float32]:
        """Behind each layer, [n, layers + 1, H]."""
        found = np.empty(
            (len(rows), self._model.config.num_hidden_layers + 1, self._model.config.hidden_size), np.float32
        )
        for batch in evaluation_batches(rows):
            tokens = collate([rows[row] for row in batch], self._pad)
            ids, mask = tokens["input_ids"][:, :-1], tokens["attention_mask"][:, :-1]
            positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
            states = self._model.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                output_hidden_states=True,
                use_cache=False,
            ).hidden_states
            found[batch] = torch.stack([state[:, -1] for state in states], dim=1).float().numpy()
        return found


def _joined(states: NDArray[np.float32], layers: list[int]) -> NDArray[np.float32]:
    return states[:, layers].reshape(len(states), -1)
