"""What one pass over rows gives: a readout, or a linear classifier beside the model on states of it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler

from benchmarks.study.setting import Material, Recipe
from mobizo_kernels.data import EncodedExample, collate, evaluation_batches
from mobizo_kernels.lora import adapter_layers
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.loss.sharing import StateStore
from mobizo_kernels.models import load_model
from mobizo_kernels.training import readout, rows_in_turn
from mobizo_kernels.training.relays import places

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
        self._entering: dict[tuple[int, ...], dict[str, torch.Tensor]] = {}

    def entering(self, name: str, rows: Sequence[EncodedExample]) -> torch.Tensor:
        """What a module is given that a readout of several layers reads, of rows forwarded before, [n, D]."""
        return torch.stack([self._entering[_prompt(row)][name] for row in rows])

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
        given: dict[str, torch.Tensor] = {}
        hooks = [
            self.model.get_submodule(name).register_forward_pre_hook(
                lambda _, args, name=name: given.update({name: args[0][:, -1].clone()})
            )
            for name in _looked_at(self.model)
        ]
        states = self.model.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        for hook in hooks:
            hook.remove()
        found = torch.stack([state[:, -1] for state in states], dim=1).float().numpy()
        each = (time.process_time() - started) / len(rows)
        for number, (row, state) in enumerate(zip(rows, found, strict=True)):
            self._rows[_prompt(row)] = state, each
            self._entering[_prompt(row)] = {name: states[number] for name, states in given.items()}


@lru_cache(maxsize=2)
def layer_states(task: str, dtype: str) -> LayerStates:
    """Of the task's rows, forwarded once for all runs of the process."""
    model, tokenizer = load_model("smollm2", dtype)
    return LayerStates(model.eval(), tokenizer.pad_token_id)


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


class RowsForwardedBefore(LabelledLoss):
    """Of a model, by states of the base model as long as its adapters change nothing."""

    def __init__(
        self, model: Any, candidates: tuple[int, ...], states: LayerStates, pad: int, store: StateStore
    ) -> None:
        super().__init__(model, candidate_tokens=candidates, store=store)
        self._states, self._pad = states, pad
        self._names = {module: name for name, module in model.named_modules()}

    def hidden_states(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        if any(layer.lora_b.any() for layer in adapter_layers(self.model).values()):
            return super().hidden_states(batch)
        return torch.from_numpy(self._states(_rows(batch))[:, -1]).to(self.model.dtype)

    def states_entering(
        self, modules: Sequence[torch.nn.Module], batch: Mapping[str, torch.Tensor]
    ) -> list[torch.Tensor]:
        last, rows = self.hidden_states(batch), _rows(batch)
        return [*(self._states.entering(self._names[module], rows) for module in modules), last]


def read_out(recipe: Recipe, model: Any, data: Material, store: StateStore) -> dict[str, Any]:
    """Begin with a readout; what it found, the tokens that it forwarded, and what it took."""
    states = layer_states(recipe.task, recipe.dtype)
    rows = rows_in_turn(data.train, recipe.readout_rows, recipe.seed)
    states([*rows, *data.validation])
    started = time.process_time()
    loss = RowsForwardedBefore(model, data.candidates, states, data.pad, store)
    found = readout(loss, rows, data.validation, layers=recipe.readout_layers, pad_token=data.pad)
    spent = time.process_time() - started + states.seconds([*rows, *data.validation])
    tokens = sum(len(row.input_ids) - 1 for row in [*rows, *data.validation])
    about = {"ridge": found.ridge, "rank": found.rank, "layers": found.layers}
    return {**about, "tokens": tokens, "seconds": spent}


def _looked_at(model: Any) -> list[str]:
    """The modules whose inputs a readout of several layers reads."""
    layers = model.config.num_hidden_layers
    names = [
        f"model.layers.{index}.{name}"
        for index in places(range(2 * layers // 3, layers))
        for name in ("mlp.down_proj", "post_attention_layernorm")
    ]
    return [*names, "model.norm"]


def _rows(batch: Mapping[str, torch.Tensor]) -> list[EncodedExample]:
    kept = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
    return [EncodedExample(ids[mask].tolist(), -1) for ids, mask in kept]


def _prompt(row: EncodedExample) -> tuple[int, ...]:
    return tuple(row.input_ids[: -row.targets])


def _joined(states: NDArray[np.float32], layers: list[int]) -> NDArray[np.float32]:
    return states[:, layers].reshape(len(states), -1)
