"""One run of the recipe study: a model tuned within a budget of processor time, scored along the way."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from benchmarks.steps import with_folded_head
from benchmarks.study.readouts import LayerReadout, LayerStates
from mobizo_kernels import wrap, wrap_parameters
from mobizo_kernels.cli.settings import TrainSettings
from mobizo_kernels.data import TASKS, EncodedExample, PromptEncoder, collate, training_batches
from mobizo_kernels.lora import adapter_layers, adapter_of, is_wrapped, tuned_layers
from mobizo_kernels.lora.targets import layer_range, linear_names
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.loss.sharing import StateStore
from mobizo_kernels.models import load_model
from mobizo_kernels.optim import ZOSGD
from mobizo_kernels.training import Keeper, Scored, readout, rows_in_turn, score_rows
from mobizo_kernels.zo import ZerothOrder, tuned_parameters


@dataclass(frozen=True)
class Recipe:
    """What a run does. The defaults are those of `mobizo train --start zero`.

    Attributes:
        task: a name in `mobizo_kernels.data.TASKS`.
        seed: of A, the directions and the batches.
        method: "zo"; "mezo" for sequential MeZO over LoRA-FA (q = 1, two forwards of the batch);
            "first-order" for back-propagation to B with AdamW; "exact-gradient" for steps of length `lr`
            along the gradient, which "zo" would take without the variance of its estimate; either with
            "-kept" through the tail alone, the states before it kept from a forward of the base model;
            "none" for no steps behind the readout; "best-layer" and "layers" for a classifier beside the
            model, on the states behind one layer of it or several; "all" for all parameters of the model in
            one batched forward, "all-in-turn" for them in a forward for each perturbation, as MeZO has it.
        readout_rows: that a readout is made of, to begin with or beside the model; 0 for none. It is paid
            from the budget.
        tail: tokens at the end of the prompt on which the adapters act; 0 for all of the sequence.
        kept: keep what the base model makes of a row for the next epoch.
        train_rows: of the training split; 0 for all.
        seconds: of processor time of one thread, evaluations left out.
        max_steps: at which a run ends before its budget does; the rate falls over these. 0 for none.
        decay: the learning rate falls linearly to 0 over the budget.
        selection_rows: of the validation split, beyond those that a run is looked at on, that are scored
            beside the test rows: what chooses between recipes.
    """

    task: str = TrainSettings.data
    seed: int = 0
    method: str = "zo"
    tail: int = TrainSettings.tail
    kept: bool = False
    train_rows: int = 0
    readout_rows: int = 0
    targets: str = TrainSettings.targets
    layers: str = TrainSettings.layers
    rank: int = TrainSettings.rank
    queries: int = TrainSettings.queries
    batch_size: int = TrainSettings.batch_size
    estimator: str = TrainSettings.estimator
    distribution: str = TrainSettings.distribution
    normalize: bool = TrainSettings.normalize
    optimizer: str = TrainSettings.optimizer
    momentum: float = TrainSettings.momentum
    lr: float = TrainSettings.lr
    decay: bool = True
    eps: float = TrainSettings.eps
    seconds: float = 60.0
    max_steps: int = 0
    selection_rows: int = 0
    dtype: str = "bfloat16"  # which "auto" is in torch


@dataclass(frozen=True)
class Material:
    """A task in tokens."""

    train: list[EncodedExample]
    validation: list[EncodedExample]
    test: list[EncodedExample]
    selection: list[EncodedExample]
    candidates: tuple[int, ...]
    pad: int


@lru_cache(maxsize=2)
def material(
    task: str,
    selection_rows: int = 0,
    validation_rows: int = TrainSettings.validation_rows,
    test_rows: int = TrainSettings.eval_rows,
) -> Material:
    """The task's texts in its own prompt."""
    named = TASKS[task]
    _, tokenizer = load_model("smollm2", "bfloat16")
    encoder = PromptEncoder(tokenizer, named.template, dict(named.verbalizer))
    splits = named.read()
    return Material(
        encoder.encode(splits.train),
        encoder.encode(splits.validation[:validation_rows]),
        encoder.encode(splits.test[:test_rows]),
        encoder.encode(splits.validation[validation_rows : validation_rows + selection_rows]),
        encoder.candidate_tokens,
        tokenizer.pad_token_id,
    )


@lru_cache(maxsize=2)
def layer_states(task: str, dtype: str) -> LayerStates:
    """Of the task's rows, forwarded once for all runs of the process."""
    model, tokenizer = load_model("smollm2", dtype)
    return LayerStates(model.eval(), tokenizer.pad_token_id)


@lru_cache(maxsize=1)
def prefix_states(task: str, tail: int, dtype: str) -> StateStore:
    """Of the held-out rows, for all runs of the process."""
    return StateStore(2**32)


class RowsForwardedBefore(LabelledLoss):
    """Of a model whose adapter changes nothing yet, by states of the base model."""

    def __init__(self, model: Any, candidates: tuple[int, ...], states: LayerStates, pad: int) -> None:
        super().__init__(model, candidate_tokens=candidates)
        self._states, self._pad = states, pad

    def hidden_states(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        kept = zip(batch["input_ids"], batch["attention_mask"].bool(), strict=True)
        rows = [EncodedExample(ids[mask].tolist(), -1) for ids, mask in kept]
        return torch.from_numpy(self._states(rows)[:, -1]).to(self.model.dtype)


def wrapped_model(recipe: Recipe, data: Material, dtype: str) -> Any:
    """SmolLM2 with the adapter of the recipe, or to be tuned as a whole."""
    model, _ = load_model("smollm2", dtype)
    model.eval()
    if recipe.method in ("all", "all-in-turn"):
        return wrap_parameters(model) if recipe.method == "all" else model
    prompt = data.train[0].input_ids[:-1]
    names = linear_names(model) if recipe.targets == "all-linear" else recipe.targets.split(",")
    config = LoraConfig(
        r=recipe.rank,
        lora_alpha=2 * recipe.rank,
        target_modules=names,
        layers_to_transform=layer_range(recipe.layers, model.config.num_hidden_layers),
        task_type="CAUSAL_LM",
        alora_invocation_tokens=prompt[-recipe.tail :] if recipe.tail else None,
    )
    return wrap(model, config, seed=recipe.seed)


def run(recipe: Recipe) -> dict[str, Any]:
    """Tune and score.

    Returns:
        The curve: for each evaluation the seconds and steps so far, validation loss, accuracy and AUC; and
        the test quality of the adapter that `Selection` keeps, as "best", of the last one, of a readout, and
        of the means of B over the last half and quarter of the steps.
    """
    data = material(recipe.task, recipe.selection_rows)
    if recipe.method in ("best-layer", "layers"):
        return _layer_readout(recipe, data)
    model = wrapped_model(recipe, data, recipe.dtype)
    store = prefix_states(recipe.task, recipe.tail, recipe.dtype)
    evaluation = LabelledLoss(model, candidate_tokens=data.candidates, store=store)

    def held_out() -> dict[str, Any]:
        _, quality = scored(evaluation, data.test, data.pad)
        if not data.selection:
            return quality
        return quality | {"selection": scored(evaluation, data.selection, data.pad)[1]}

    read_out: dict[str, Any] = {}
    spent, steps, tokens = 0.0, 0, 0
    if recipe.readout_rows:
        found = _readout(recipe, model, data)
        spent += found["seconds"]
        tokens += found.pop("tokens")
        read_out = {"readout": found | held_out()}
    begun = spent
    means = {"mean of the last half": Mean(model, 0.5), "mean of the last quarter": Mean(model, 0.75)}
    take_step = _STEPS[recipe.method](recipe, model, data) if recipe.method != "none" else None
    rows = data.train[: recipe.train_rows] if recipe.train_rows else data.train
    batches = training_batches(rows, recipe.batch_size, recipe.seed)

    curve: list[dict[str, float]] = []
    keeper = Keeper(model)

    def validate() -> None:
        losses, quality = scored(evaluation, data.validation, data.pad)
        curve.append({"seconds": spent, "steps": steps, "tokens": tokens, "loss": losses.mean(), **quality})
        keeper.offer(losses)

    validate()
    due = itertools.count(1)
    whole = recipe.seconds - begun

    def progress() -> float:
        return steps / recipe.max_steps if recipe.max_steps else (spent - begun) / whole

    next_validation = next(due)
    while take_step is not None and progress() < 1 and spent < recipe.seconds:
        batch = collate(next(batches), data.pad)
        started = time.process_time()
        tokens += take_step(batch, 1 - progress() if recipe.decay else 1.0)
        spent += time.process_time() - started
        steps += 1
        for mean in means.values():
            mean.take(progress())
        if 10 * progress() >= next_validation:
            validate()
            next_validation = next(due)
    found = {"curve": curve, "steps": steps, "tokens": tokens, "last": held_out()}
    if steps and recipe.method in ("zo", "exact-gradient-kept"):
        for name, mean in means.items():
            mean.put()
            found[name] = held_out()
    keeper.restore()
    return found | {"best": held_out(), **read_out}


class Mean:
    """The mean of what is tuned over the steps from a share of a run on."""

    def __init__(self, model: Any, begin: float) -> None:
        self._parameters = [parameter for _, parameter in tuned_parameters(model)]
        self._begin, self._count = begin, 0
        self._sums = [torch.zeros_like(parameter) for parameter in self._parameters]

    @torch.no_grad()
    def take(self, progress: float) -> None:
        """The parameters behind a step, after which so much of the run is over."""
        if progress > self._begin:
            self._count += 1
            torch._foreach_add_(self._sums, self._parameters)

    @torch.no_grad()
    def put(self) -> None:
        """Into the model."""
        for parameter, total in zip(self._parameters, self._sums, strict=True):
            parameter.copy_(total / self._count)


def _layer_readout(recipe: Recipe, data: Material) -> dict[str, Any]:
    """`run` for a classifier beside the model."""
    states = layer_states(recipe.task, recipe.dtype)
    rows = rows_in_turn(data.train, recipe.readout_rows, recipe.seed)
    states([*rows, *data.validation])
    started = time.process_time()
    found = LayerReadout(states, rows, data.validation, recipe.method == "layers")
    spent = time.process_time() - started + states.seconds([*rows, *data.validation])
    labels = np.array([row.label for row in data.test])
    last = _quality(Scored(np.log(found.probabilities(data.test)), labels))
    about = {"layers": found.layers, "penalty": found.penalty, "seconds": spent}
    tokens = sum(len(row.input_ids) - 1 for row in [*rows, *data.validation])
    ends = {"last": last, "best": last, "readout": {**about, **last}}
    return {"curve": [], "steps": 0, "tokens": tokens, **ends}


def _readout(recipe: Recipe, model: Any, data: Material) -> dict[str, Any]:
    """Begin with a readout; its ridge and rank, the tokens that it forwarded, and what it took."""
    states = layer_states(recipe.task, recipe.dtype)
    rows = rows_in_turn(data.train, recipe.readout_rows, recipe.seed)
    states([*rows, *data.validation])
    started = time.process_time()
    loss = RowsForwardedBefore(model, data.candidates, states, data.pad)
    found = readout(loss, rows, data.validation, pad_token=data.pad)
    spent = time.process_time() - started + states.seconds([*rows, *data.validation])
    tokens = sum(len(row.input_ids) - 1 for row in [*rows, *data.validation])
    return {"ridge": found.ridge, "rank": found.rank, "tokens": tokens, "seconds": spent}


def scored(
    loss: LabelledLoss, rows: list[EncodedExample], pad: int
) -> tuple[NDArray[np.float64], dict[str, float]]:
    """Cross-entropy of each row, and of all balanced accuracy and AUC (the mean over label pairs)."""
    found = score_rows(loss, rows, pad)
    return found.losses, _quality(found)


def _quality(found: Scored) -> dict[str, Any]:
    return {"accuracy": found.balanced_accuracy, "auc": float("nan") if found.auc is None else found.auc}


def _zeroth_order(
    recipe: Recipe, model: Any, data: Material
) -> Callable[[dict[str, torch.Tensor], float], int]:
    zo = ZerothOrder(
        model,
        queries=recipe.queries,
        eps=recipe.eps,
        lr=recipe.lr,
        run_seed=recipe.seed,
        estimator=recipe.estimator,
        distribution=recipe.distribution,
        normalize=recipe.normalize,
        optimizer=recipe.optimizer,
        momentum=recipe.momentum,
        candidate_tokens=data.candidates,
    )
    if recipe.kept:
        zo.loss.store = StateStore(2**31)

    def take_step(batch: dict[str, torch.Tensor], factor: float) -> int:
        zo.optimizer.param_groups[0]["lr"] = recipe.lr * factor
        zo.step(batch)
        rows, width = batch["input_ids"].shape
        tail = recipe.tail if is_wrapped(model) and recipe.tail else width - 1
        return rows * (width - 1 - tail) + zo.estimator.groups * rows * tail

    return take_step


def _first_order(
    recipe: Recipe, model: Any, data: Material
) -> Callable[[dict[str, torch.Tensor], float], int]:
    """LoRA-FA by back-propagation, as PEFT's users run it, to the B of the wrapped model: by AdamW, or by
    steps of a length along the gradient; through the whole sequence, or through the tail alone.
    """
    twin, factors = first_order_twin(model, recipe.dtype)
    exact = recipe.method.startswith("exact-gradient")
    optimizer: torch.optim.Optimizer
    if exact:
        optimizer = torch.optim.SGD(factors.values(), lr=recipe.lr)
    else:
        optimizer = torch.optim.AdamW(factors.values(), lr=recipe.lr, weight_decay=0.0)
    kept = recipe.method.endswith("-kept")

    def take_step(batch: dict[str, torch.Tensor], factor: float) -> int:
        optimizer.param_groups[0]["lr"] = recipe.lr * factor
        if kept:
            loss = tail_loss(twin, batch, data.candidates, recipe.tail)
        else:
            loss = label_loss(twin, batch, data.candidates)
        loss.backward()
        if exact:
            gradients = [b.grad for b in factors.values()]
            torch._foreach_div_(gradients, torch.nn.utils.get_total_norm(gradients))
        optimizer.step()
        optimizer.zero_grad()
        return batch["input_ids"][:, :-1].numel()

    return take_step


def first_order_twin(model: Any, dtype: str) -> tuple[Any, dict[str, torch.nn.Parameter]]:
    """PEFT's model with the adapter of a wrapped one, A frozen, and its B by path: all the same memory."""
    base = with_folded_head(load_model("smollm2", dtype)[0])
    twin = get_peft_model(base, adapter_of(model).config).eval()
    modules = {
        name.removeprefix("base_model.model."): module
        for name, module in twin.named_modules()
        if isinstance(module, LoraLayer)
    }
    tuned, factors = tuned_layers(model), {}
    for name, layer in adapter_layers(model).items():
        a, b = modules[name].lora_A["default"].weight, modules[name].lora_B["default"].weight
        a.data, b.data = layer.lora_a.detach(), layer.lora_b.detach()
        a.requires_grad_(False)
        if name in tuned:
            factors[name] = b
        else:  # a readout in the LM head
            b.requires_grad_(False)
    return twin, factors


def label_loss(model: Any, batch: dict[str, torch.Tensor], candidates: tuple[int, ...]) -> torch.Tensor:
    """Cross-entropy between the label words at the end of each row, by the labelled position's logits."""
    ids, mask = batch["input_ids"][:, :-1], batch["attention_mask"][:, :-1]
    words = torch.tensor(candidates)
    targets = (batch["labels"][:, -1:] == words).int().argmax(dim=1)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logits = model(
        input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False, logits_to_keep=1
    ).logits[:, -1, words]
    return F.cross_entropy(logits.float(), targets)


def tail_loss(
    model: Any, batch: dict[str, torch.Tensor], candidates: tuple[int, ...], tail: int
) -> torch.Tensor:
    """:func:`label_loss` whose gradient goes back through the tail alone: before it is the base model, which
    needs none.
    """
    ids, mask = batch["input_ids"][:, :-1], batch["attention_mask"][:, :-1]
    words = torch.tensor(candidates)
    targets = (batch["labels"][:, -1:] == words).int().argmax(dim=1)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with torch.no_grad():
        states = model(
            input_ids=ids[:, :-tail], attention_mask=mask[:, :-tail], position_ids=positions[:, :-tail],
            use_cache=True, logits_to_keep=1,
        ).past_key_values  # fmt: skip
    logits = model(
        input_ids=ids[:, -tail:], attention_mask=mask, position_ids=positions[:, -tail:],
        past_key_values=states, logits_to_keep=1,
    ).logits[:, -1, words]  # fmt: skip
    return F.cross_entropy(logits.float(), targets)


def _mezo(recipe: Recipe, model: Any, data: Material) -> Callable[[dict[str, torch.Tensor], float], int]:
    """MeZO (arXiv 2305.17333, Algorithm 1) over LoRA-B with this package's noise: q = 1, a sign at a time."""
    loss = LabelledLoss(model, candidate_tokens=data.candidates)
    optimizer = ZOSGD(tuned_parameters(model), recipe.lr, distribution=recipe.distribution)
    seeds = itertools.count(recipe.seed << 32)

    def take_step(batch: dict[str, torch.Tensor], factor: float) -> int:
        optimizer.param_groups[0]["lr"] = recipe.lr * factor
        seed, eps = torch.tensor([next(seeds)]), torch.tensor([recipe.eps])
        optimizer.perturb(seed, eps)
        plus = loss(batch)
        optimizer.perturb(seed, -2 * eps)
        minus = loss(batch)
        optimizer.step(seed, (plus - minus) / (2 * eps), -eps)
        return 2 * batch["input_ids"][:, :-1].numel()

    return take_step


_STEPS = {
    "zo": _zeroth_order,
    "all": _zeroth_order,
    "all-in-turn": _zeroth_order,
    "mezo": _mezo,
    "first-order": _first_order,
    "first-order-kept": _first_order,
    "exact-gradient": _first_order,
    "exact-gradient-kept": _first_order,
}
