"""What steps learn of free answers: by objectives without a gradient, by the cross-entropy, and beside
back-propagation, within the same seconds.

Every run tunes SmolLM2-135M-Instruct within a budget of processor time of one thread, evaluations left out,
and is scored on rows that decided nothing. A run that is in the file already is not made again.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from peft import LoraConfig

from benchmarks.harness import machine
from benchmarks.study.first_order import first_order_twin
from benchmarks.study.recipe import read_lines
from mobizo_kernels import wrap
from mobizo_kernels.data import (
    ChatEncoder,
    Conversation,
    EncodedExample,
    collate,
    load_conversations,
    question,
    training_batches,
)
from mobizo_kernels.generation import Sampling, TextGenerator
from mobizo_kernels.lora.targets import layer_range, linear_names
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.models import load_model
from mobizo_kernels.training import score_answers, write_answers
from mobizo_kernels.training.objectives import REWARDS, TextReward
from mobizo_kernels.training.text_metrics import METRICS
from mobizo_kernels.zo import ZerothOrder

RULES = {
    # What is asked for, and what the user says behind the question.
    "ten-words": "",
    "json-answer": '\nAnswer as JSON: {"answer": ...}',
}


@dataclass(frozen=True)
class Recipe:
    """What a run does.

    Attributes:
        task: a name in `RULES`, whose questions are those of ASDiv, or a name in `ANSWER_TASKS`.
        objective: "cross-entropy" or a name in `REWARDS`.
        first_order: back-propagation of the cross-entropy with AdamW and gradient checkpointing, to the same
            adapter.
        first: share of the seconds in which the cross-entropy is minimised, before the objective is.
        seconds: of processor time of one thread, evaluations left out; the rate falls linearly to 0.
    """

    task: str
    objective: str
    seed: int = 0
    queries: int = 8
    batch_size: int = 4
    lr: float = 0.1
    eps: float = 0.1
    shaping: str = "none"
    normalize: bool = True
    max_new_tokens: int = 24
    first: float = 0.0
    first_order: bool = False
    seconds: float = 120.0


RUNS = {
    "rule: ten words": Recipe("ten-words", "ten-words"),
    "rule: JSON": Recipe("json-answer", "json-answer"),
    "F1": Recipe("asdiv", "f1", batch_size=8, max_new_tokens=12),
    "F1 behind cross-entropy": Recipe("asdiv", "f1", batch_size=8, max_new_tokens=12, first=0.5),
    "cross-entropy": Recipe("asdiv", "cross-entropy", batch_size=8, eps=0.05, max_new_tokens=12),
    "sentences": Recipe("xsum", "cross-entropy", eps=0.05, max_new_tokens=40),
    "sentences, first-order": Recipe("xsum", "cross-entropy", lr=2e-3, max_new_tokens=40, first_order=True),
}


def conversations(task: str) -> tuple[list[Conversation], list[Conversation], list[Conversation]]:
    """Rows to train, validate and test on."""
    splits = load_conversations("asdiv" if task in RULES else task)
    parts = splits.train, splits.validation, splits.test
    if task not in RULES:
        return parts
    asked = [
        [question(row.messages[0][1].split("\n")[0] + RULES[task], row.messages[1][1]) for row in part]
        for part in parts
    ]
    return asked[0], asked[1], asked[2]


def run(recipe: Recipe, test_rows: int, looks: int) -> dict[str, Any]:
    """Tune and score: a curve over validation rows, and the test rows before and after."""
    model, tokenizer = load_model("smollm2", "bfloat16")
    encoder = ChatEncoder(tokenizer)
    train, validation, test = (encoder.encode(part) for part in conversations(recipe.task))
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        target_modules=linear_names(model),
        layers_to_transform=layer_range("top-67%", model.config.num_hidden_layers),
        task_type="CAUSAL_LM",
        alora_invocation_tokens=encoder.invocation,
    )
    wrap(model, config, seed=recipe.seed)
    sampling = Sampling(recipe.max_new_tokens)
    generator, loss = TextGenerator(model, encoder.end_tokens), LabelledLoss(model)

    def scored(rows: list[EncodedExample]) -> dict[str, Any]:
        model.eval()
        written = write_answers(generator, tokenizer, rows, sampling)
        found = {name: written.mean(name) for name in METRICS}
        if (rule := recipe.objective) in RULES:
            rewards = REWARDS[rule]("", written.answers, "")
            found |= {"kept": sum(reward == 1 for reward in rewards) / len(rewards)}
            found |= {"reward": sum(rewards) / len(rewards)}
        words = sum(len(answer.split()) for answer in written.answers) / len(rows)
        perplexity = score_answers(loss, rows, tokenizer.pad_token_id).perplexity
        return {**found, "words": words, "perplexity": perplexity, "examples": written.answers[:3]}

    zo = ZerothOrder(
        model, queries=recipe.queries, eps=recipe.eps, lr=recipe.lr, run_seed=recipe.seed,
        distribution="rademacher", normalize=recipe.normalize,
    )  # fmt: skip
    objective = None
    if recipe.objective != "cross-entropy":
        objective = TextReward(generator, tokenizer, REWARDS[recipe.objective], sampling)

    def zo_step(batch: dict[str, torch.Tensor], share: float) -> float:
        zo.optimizer.param_groups[0]["lr"] = recipe.lr * (1 - share)
        chosen = objective if share >= recipe.first else None
        return zo.step(batch, objective=chosen, shaping=recipe.shaping).loss

    step = first_order(model, recipe) if recipe.first_order else zo_step
    batches = training_batches(train, recipe.batch_size, recipe.seed)
    spent, steps, losses = 0.0, 0, []
    before, curve = scored(test[:test_rows]), []
    while spent < recipe.seconds:
        batch = collate(next(batches), tokenizer.pad_token_id)
        started = time.process_time()
        loss_now = step(batch, spent / recipe.seconds)
        spent += time.process_time() - started
        steps += 1
        losses.append(round(loss_now, 4))
        if spent >= (len(curve) + 1) * recipe.seconds / looks:
            found = scored(validation[: test_rows // 2])
            curve.append({"seconds": spent, "steps": steps, **found})
            print(f"  {spent:.0f} s, step {steps}: {found}", flush=True)
    return {
        "steps": steps,
        "losses": losses,
        "curve": curve,
        "before": before,
        "after": scored(test[:test_rows]),
    }


def first_order(model: Any, recipe: Recipe) -> Callable[[dict[str, torch.Tensor], float], float]:
    """Steps of AdamW on the model's own B, through PEFT."""
    twin, factors = first_order_twin(model, "bfloat16")
    twin.train()  # there is no dropout; gradient checkpointing asks for it
    twin.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    optimizer = torch.optim.AdamW(factors.values(), lr=recipe.lr, weight_decay=0.0)

    def step(batch: dict[str, torch.Tensor], share: float) -> float:
        optimizer.param_groups[0]["lr"] = recipe.lr * (1 - share)
        ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
        answers = int((labels != -100).sum(dim=1).max())
        logits = twin(
            input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
            use_cache=False, logits_to_keep=answers + 1,
        ).logits[:, :-1]  # fmt: skip
        loss = F.cross_entropy(logits.flatten(0, 1).float(), labels[:, -answers:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    made = read_lines(options.out)
    for seed in range(options.seed, options.seed + options.seeds):
        for name in options.runs or RUNS:
            changes = dict(change.split("=") for change in options.change)
            kinds = {key: type(value) for key, value in asdict(RUNS[name]).items()}
            recipe = replace(
                RUNS[name], seed=seed, seconds=options.seconds, **{k: kinds[k](v) for k, v in changes.items()}
            )
            key = {**asdict(recipe), "name": name}
            if any(key == {"first": 0.0, "first_order": False} | line["recipe"] for line in made):
                continue
            print(f"{name}, {recipe}", flush=True)
            line = {"recipe": key, "machine": machine(), **run(recipe, options.test_rows, options.looks)}
            made.append(line)
            with options.out.open("a") as file:  # at once: a study that is stopped goes on from here
                file.write(json.dumps(line) + "\n")
    summarize(made)


def summarize(lines: list[dict[str, Any]]) -> None:
    """One row for each run."""
    print(
        "\n| run | seed | seconds | steps | rule kept | F1 | exact | words | perplexity |\n"
        + "|---" * 9
        + "|"
    )
    for line in lines:
        recipe, pairs = line["recipe"], []
        for figure, form in (
            ("kept", ".0%"),
            ("f1", ".1%"),
            ("exact_match", ".1%"),
            ("words", ".1f"),
            ("perplexity", ".1f"),
        ):
            values = [line[when].get(figure) for when in ("before", "after")]
            pairs.append("" if None in values else " to ".join(format(value, form) for value in values))
        print(
            f"| {recipe['name']} | {recipe['seed']} | {recipe['seconds']:g} | {line['steps']} | "
            + " | ".join(pairs)
            + " |"
        )


def _options() -> argparse.Namespace:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--out", type=Path, required=True, metavar="FILE.jsonl", help="runs are added to it")
    options.add_argument("--runs", nargs="+", choices=RUNS, help="all by default")
    options.add_argument("--seconds", type=float, default=120.0, help="budget of a run")
    options.add_argument("--seed", type=int, default=0, help="the first")
    options.add_argument("--seeds", type=int, default=1, help="runs of each recipe")
    options.add_argument("--test-rows", type=int, default=100)
    options.add_argument("--looks", type=int, default=4)
    options.add_argument("--change", nargs="*", default=[], metavar="NAME=VALUE", help="of the recipes")
    return options.parse_args()


if __name__ == "__main__":
    main()
