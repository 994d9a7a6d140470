"""What a run of the recipe study is of: its recipe, its task in tokens, its model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from peft import LoraConfig

from mobizo_kernels import wrap, wrap_parameters
from mobizo_kernels.choices import ReadoutLayers
from mobizo_kernels.cli.settings import TrainSettings
from mobizo_kernels.data import TASKS, EncodedExample, PromptEncoder
from mobizo_kernels.lora.targets import layer_range, linear_names
from mobizo_kernels.models import load_model


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
        readout_layers: "last", or "several" for those whose neurons are read as well.
        tail: tokens at the end of the prompt on which the adapters act; 0 for all of the sequence.
        stages: equal parts of the run, in each of which there are twice the queries of the one before.
        blocks: of neighbouring layers; a direction touches one of them, which has its share of the queries
            and a step of its own.
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
    readout_layers: ReadoutLayers = "last"
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
    stages: int = 1
    blocks: int = 1
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
