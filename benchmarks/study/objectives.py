"""What steps learn of free answers: by objectives without a gradient, by the cross-entropy, and beside
back-propagation, within the same seconds.

Every run tunes SmolLM2-135M-Instruct within a budget of processor time of one thread, evaluations left out,
and is scored on rows that decided nothing. A run that is in the file already is not made again.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from benchmarks.harness import machine
from benchmarks.study.first_order import answer_loss, first_order_twin
from benchmarks.study.recipe import read_lines
from mobizo_kernels import wrap
from mobizo_kernels.cli.memory import peak_rss_mb, reset_peak_rss
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

Step = Callable[[dict[str, torch.Tensor], float], float]
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
        first_order: back-propagation of the cross-entropy with AdamW, to the same adapter, with gradient
            checkpointing.
        kept: the states before the adapter's first token are kept from a forward of the base model, and the
            gradient goes back through the rest alone, without checkpointing.
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
    kept: bool = False
    seconds: float = 120.0


SENTENCES_FIRST_ORDER = Recipe("xsum", "cross-entropy", lr=2e-3, max_new_tokens=40, first_order=True)
RUNS = {
    "rule: ten words": Recipe("ten-words", "ten-words"),
    "rule: JSON": Recipe("json-answer", "json-answer"),
    "F1": Recipe("asdiv", "f1", batch_size=8, max_new_tokens=12),
    "F1 behind cross-entropy": Recipe("asdiv", "f1", batch_size=8, max_new_tokens=12, first=0.5),
    "cross-entropy": Recipe("asdiv", "cross-entropy", batch_size=8, eps=0.05, max_new_tokens=12),
    "cross-entropy, first-order, tail alone": Recipe(
        "asdiv", "cross-entropy", batch_size=8, lr=2e-3, max_new_tokens=12, first_order=True, kept=True
    ),
    "sentences": Recipe("xsum", "cross-entropy", eps=0.05, max_new_tokens=40),
    "sentences, first-order": SENTENCES_FIRST_ORDER,
    "sentences, first-order, tail alone": replace(SENTENCES_FIRST_ORDER, kept=True),
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


class Tuned:
    """The model of a run, its rows in tokens, and its step.

    Attributes:
        step: takes a batch and the share of the seconds that is over, gives the loss.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.model, self.tokenizer = load_model("smollm2", "bfloat16")
        self.encoder = ChatEncoder(self.tokenizer)
        parts = (self.encoder.encode(part) for part in conversations(recipe.task))
        self.train, self.validation, self.test = parts
        config = LoraConfig(
            r=8,
            lora_alpha=16,
            target_modules=linear_names(self.model),
            layers_to_transform=layer_range("top-67%", self.model.config.num_hidden_layers),
            task_type="CAUSAL_LM",
            alora_invocation_tokens=self.encoder.invocation,
        )
        wrap(self.model, config, seed=recipe.seed)
        self.sampling = Sampling(recipe.max_new_tokens)
        self.generator = TextGenerator(self.model, self.encoder.end_tokens)
        self.step = self._first_order() if recipe.first_order else self._zeroth_order()

    def collated(self, rows: list[EncodedExample]) -> dict[str, torch.Tensor]:
        """A batch of them."""
        return collate(rows, self.tokenizer.pad_token_id)

    def scored(self, rows: list[EncodedExample]) -> dict[str, Any]:
        """What greedy answers to the rows, and the loss on theirs, tell."""
        self.model.eval()
        written = write_answers(self.generator, self.tokenizer, rows, self.sampling)
        found = {name: written.mean(name) for name in METRICS}
        if (rule := self.recipe.objective) in RULES:
            rewards = REWARDS[rule]("", written.answers, "")
            found |= {"kept": sum(reward == 1 for reward in rewards) / len(rewards)}
            found |= {"reward": sum(rewards) / len(rewards)}
        words = sum(len(answer.split()) for answer in written.answers) / len(rows)
        loss = LabelledLoss(self.model)
        perplexity = score_answers(loss, rows, self.tokenizer.pad_token_id).perplexity
        return {**found, "words": words, "perplexity": perplexity, "examples": written.answers[:3]}

    def _zeroth_order(self) -> Step:
        recipe = self.recipe
        zo = ZerothOrder(
            self.model, queries=recipe.queries, eps=recipe.eps, lr=recipe.lr, run_seed=recipe.seed,
            distribution="rademacher", normalize=recipe.normalize,
        )  # fmt: skip
        objective = None
        if recipe.objective != "cross-entropy":
            reward = REWARDS[recipe.objective]
            objective = TextReward(self.generator, self.tokenizer, reward, self.sampling)

        def step(batch: dict[str, torch.Tensor], share: float) -> float:
            zo.optimizer.param_groups[0]["lr"] = recipe.lr * (1 - share)
            chosen = objective if share >= recipe.first else None
            return zo.step(batch, objective=chosen, shaping=recipe.shaping).loss

        return step

    def _first_order(self) -> Step:
        """AdamW on the model's own B, through PEFT."""
        twin, factors = first_order_twin(self.model, "bfloat16")
        tail = None
        if self.recipe.kept:
            tail = len(self.encoder.invocation)
        else:
            twin.train()  # there is no dropout; gradient checkpointing asks for it
            twin.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        optimizer = torch.optim.AdamW(factors.values(), lr=self.recipe.lr, weight_decay=0.0)

        def step(batch: dict[str, torch.Tensor], share: float) -> float:
            optimizer.param_groups[0]["lr"] = self.recipe.lr * (1 - share)
            loss = answer_loss(twin, batch, tail)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss.item()

        return step


def run(recipe: Recipe, test_rows: int, looks: int) -> dict[str, Any]:
    """Tune and score: a curve over validation rows, and the test rows before and after."""
    with get_context("spawn").Pool(1) as pool:
        memory = pool.apply(peak_memory, (recipe,))
    tuned = Tuned(recipe)
    batches = training_batches(tuned.train, recipe.batch_size, recipe.seed)
    spent, steps, losses = 0.0, 0, []
    before, curve = tuned.scored(tuned.test[:test_rows]), []
    while spent < recipe.seconds:
        batch = tuned.collated(next(batches))
        started = time.process_time()
        loss_now = tuned.step(batch, spent / recipe.seconds)
        spent += time.process_time() - started
        steps += 1
        losses.append(round(loss_now, 4))
        if spent >= (len(curve) + 1) * recipe.seconds / looks:
            found = tuned.scored(tuned.validation[: test_rows // 2])
            curve.append({"seconds": spent, "steps": steps, **found})
            print(f"  {spent:.0f} s, step {steps}: {found}", flush=True)
    return {
        "steps": steps,
        "losses": losses,
        "memory": memory,
        "curve": curve,
        "before": before,
        "after": tuned.scored(tuned.test[:test_rows]),
    }


def peak_memory(recipe: Recipe) -> dict[str, float]:
    """MB resident in a process that makes nothing but steps: before them, and at the peak of some on the
    batches of the longest rows and of the longest answers among the first hundred.
    """
    torch.set_num_threads(1)
    tuned = Tuned(recipe)
    first = list(islice(training_batches(tuned.train, recipe.batch_size, recipe.seed), 100))
    longest = max(first, key=lambda rows: max(len(row.input_ids) for row in rows))
    longest_answers = max(first, key=lambda rows: max(row.targets for row in rows))
    ctypes.CDLL(None).malloc_trim(0)  # what loading left behind is not the steps'
    reset_peak_rss()
    before = peak_rss_mb()
    for rows in (longest, longest_answers) * 2:
        tuned.step(tuned.collated(rows), 0.0)
    return {"before": before, "peak": peak_rss_mb()}


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
            if any(key == {**asdict(Recipe("", "")), **line["recipe"]} for line in made):
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
        "\n| run | seed | seconds | peak MB | steps | rule kept | F1 | exact | words | perplexity |\n"
        + "|---" * 10
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
        peak = format(line["memory"]["peak"], ".0f") if "memory" in line else ""
        print(
            f"| {recipe['name']} | {recipe['seed']} | {recipe['seconds']:g} | {peak} | {line['steps']} | "
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
