"""Objectives without a gradient inside ExecuTorch: what each group writes, and what is made of it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from journals import RULES
from numpy.typing import NDArray
from programs import (
    CANDIDATES,
    DEFAULTS,
    Unchanged,
    assert_same_adapter,
    lora_b_of,
    program_batch,
    tiny_dataset,
    tiny_program,
    tiny_rows,
)
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from mobizo_kernels import ops
from mobizo_kernels.data import read_dataset
from mobizo_kernels.executorch import StepReport, TextReward, Trainer, read_description
from mobizo_kernels.journal import read_journal
from mobizo_kernels.optim import query_seeds
from mobizo_kernels.training.objectives import RewardError
from mobizo_kernels.zo import make_estimator
from mobizo_kernels.zo.objective import shaped

CONTEXT, INVOCATION = 40, [7, 8]
PROGRAMS: dict[str, dict[str, Any]] = {
    "two-sided": {},
    "one-sided, activated": {
        "estimator": "one_sided",
        "distribution": "rademacher",
        "adapter": {"alora_invocation_tokens": INVOCATION, "task_type": "CAUSAL_LM"},
        "tail_length": 4,
    },
    "centred, delegated": {"estimator": "centred", "distribution": "outer", "lowering": "delegated"},
}
RUN: dict[str, Any] = {"steps": 4, "lr": 0.3, "eps": 0.1, "eval_every": 2, "keep": "last"}


class Numbers:
    """A tokenizer whose words are numbers."""

    def decode(self, tokens: list[int], skip_special_tokens: bool = True) -> str:
        return " ".join(map(str, tokens)) + " " * skip_special_tokens


def score(answer: str) -> float:
    return sum(map(int, answer.split())) % 11 / 10


def scores(prompt: str, answers: list[str], reference: str) -> list[float]:
    return [score(answer) for answer in answers]


def writing_program(tmp_path_factory: pytest.TempPathFactory, **options: Any) -> Path:
    return tiny_program(tmp_path_factory, context=CONTEXT, **options)


@pytest.fixture
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return writing_program(tmp_path_factory)


@pytest.fixture
def rows(rng: torch.Generator) -> list[Any]:
    """With an answer of one or two tokens, and the invocation before it."""
    rows = tiny_rows(rng, torch.randint(6, 20, (20,), generator=rng).tolist())
    for row in rows:
        row.input_ids[:] = [token + 20 * (token in INVOCATION) for token in row.input_ids]
        row.input_ids[-4:-2] = INVOCATION
    return rows


@pytest.fixture
def data(rows: list[Any], rng: torch.Generator, tmp_path: Path) -> Path:
    parts = {"train": rows[:10], "validation": rows[10:15], "test": rows[15:]}
    order = torch.randint(10, (14,), generator=rng).tolist()
    return tiny_dataset(tmp_path / "rows.safetensors", rng, **parts, order=order)


def first_batch(rows: list[Any], data: Path) -> list[Any]:
    return [rows[i] for i in read_dataset(data).order[: DEFAULTS["batch_size"]]]


def given(reward: Callable[..., Sequence[float]] = scores, **changes: Any) -> TextReward:
    return TextReward(reward=reward, tokenizer=Numbers(), **{"max_new_tokens": 5, **changes})


def move(trainer: Trainer) -> Trainer:
    queries = trainer.description.queries
    trainer.update(np.arange(queries), np.linspace(0.5, -0.4, queries, dtype=np.float32))
    return trainer


def with_lora_b(program: Path, values: list[torch.Tensor], path: Path) -> Trainer:
    """A trainer with these LoRA-B."""
    trainer = Trainer(program)
    trainer.save_adapter(path)
    with safe_open(path, "np") as file:
        metadata = {name: value for name, value in file.metadata().items() if name != "checksum"}
    tensors = load_file(path)
    names = [name for name in trainer.adapter() if ".lora_B." in name]
    tensors |= {name: value.numpy() for name, value in zip(names, values, strict=True)}
    save_file(tensors, path, metadata)
    trainer.load_adapter(path)
    return trainer


def groups_of(program: Path, before: list[torch.Tensor], eps: float, path: Path) -> list[Trainer]:
    """A trainer for each group of step 0, with the adapter that it is to see."""
    d = read_description(program)
    estimator = make_estimator(d.estimator, queries=d.queries, eps=eps)
    seeds = estimator.seeds(torch.tensor(query_seeds(0, 0, d.queries)))
    trainers = []
    for seed, coeff in zip(seeds, estimator.coeffs(), strict=True):
        perturbed = [
            ops.perturb_(b.clone(), seed[None], coeff[None], p.stream, distribution=d.distribution)
            for b, p in zip(before, d.adapter.parameters, strict=True)
        ]
        trainers.append(with_lora_b(program, perturbed, path))
    return trainers


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_each_group_writes_by_its_own_adapter(
    name: str, temperature: float, rows: list[Any], data: Path, tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    program = writing_program(tmp_path_factory, **PROGRAMS[name])
    trainer, seen, steps = move(Trainer(program)), list[tuple[str, list[str], str]](), list[StepReport]()
    before = lora_b_of(trainer)

    def reward(prompt: str, answers: list[str], reference: str) -> list[float]:
        seen.append((prompt, answers, reference))
        return scores(prompt, answers, reference)

    run = {**RUN, "steps": 1, "eval_every": 0, "run_seed": 0, "normalize": False}
    objective = given(reward, temperature=temperature, seed=-5)
    trainer.train(data, **run, objective=objective, on_step=steps.append)
    batch = first_batch(rows, data)
    assert [(prompt, reference) for prompt, _, reference in seen] == [
        (" ".join(map(str, row.input_ids[:-1])), str(row.input_ids[-1])) for row in batch
    ]
    groups = groups_of(program, before, RUN["eps"], tmp_path / "group.safetensors")
    step_seed = int(query_seeds(-5, 0, 1)[0])
    row_seeds = query_seeds(step_seed, 0, len(batch)).tolist()
    for row, row_seed, (_, answers, _) in zip(batch, row_seeds, seen, strict=True):
        writing = {"max_new_tokens": 5, "temperature": temperature, "seed": row_seed}
        expected = [group.generate(row.input_ids[:-1], **writing).tokens for group in groups]
        assert [tuple(map(int, answer.split())) for answer in answers] == expected
    losses = 1 - np.mean([[score(answer) for answer in answers] for _, answers, _ in seen], axis=0)
    np.testing.assert_allclose(steps[0].losses, losses, rtol=1e-6)
    assert len({answer for _, answers, _ in seen for answer in answers}) > len(batch)


@pytest.mark.parametrize("rule", ["adam", "momentum and decay"])
def test_replay_gives_the_bits(
    rule: str, data: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """And so does a run that was cut off: what an optimizer keeps survives the groups."""
    program = writing_program(tmp_path_factory, **RULES[rule])
    journal, cut = tmp_path / "journal", tmp_path / "cut"
    objective = given(temperature=0.8)
    whole = Trainer(program)
    result = whole.train(data, **RUN, objective=objective, journal=journal)
    again = Trainer(program)
    assert again.replay(journal) == 4
    assert_same_adapter(whole, again)
    assert any(b.abs().max() > 0 for b in lora_b_of(whole))

    def interrupt(report: StepReport) -> None:
        if report.step == 1:
            raise StopIteration

    with pytest.raises(StopIteration):
        Trainer(program).train(data, **RUN, objective=objective, journal=cut, on_step=interrupt)
    resumed = Trainer(program)
    assert resumed.train(data, **RUN, objective=objective, journal=cut, resume=True).resumed_steps == 2
    assert_same_adapter(resumed, whole)
    assert cut.read_bytes() == journal.read_bytes()
    assert len(result.evaluations) == 3 and all(np.isnan(v.accuracy) for v in result.evaluations)
    for other in (
        {"objective": given(temperature=0.8, name="other")},
        {"objective": given(temperature=0.8 + 1e-9)},
        {"reward_shaping": "rank"},
        {},
    ):
        changed: dict[str, Any] = {"objective": objective, **other} if other else {}
        with pytest.raises(ValueError, match="data is .* here, but the journal has"):
            Trainer(program).train(data, **RUN, **changed, journal=cut, resume=True)


def test_validation_is_the_reward_of_held_out_rows(program: Path, rows: list[Any], data: Path) -> None:
    trainer = move(Trainer(program))
    result = trainer.train(data, **{**RUN, "steps": 1, "eval_every": 1}, objective=given(), validation_rows=4)
    answers = [move(Trainer(program)).generate(row.input_ids[:-1], max_new_tokens=5) for row in rows[10:14]]
    expected = [1 - score(" ".join(map(str, answer.tokens))) for answer in answers]
    assert result.evaluations[0].loss == pytest.approx(np.mean(expected))


def test_a_rule_is_learned(program: Path, data: Path) -> None:
    """Answers shall consist of even tokens."""
    steps = list[StepReport]()

    def even(prompt: str, answers: list[str], reference: str) -> list[float]:
        return [float(np.mean([int(token) % 2 == 0 for token in answer.split()])) for answer in answers]

    run = {**RUN, "steps": 30, "eval_every": 0, "normalize": True, "eps": 0.3}
    Trainer(program).train(data, **run, objective=given(even), on_step=steps.append)
    losses = [step.loss for step in steps]
    assert np.mean(losses[-6:]) < np.mean(losses[:6]) - 0.1


def test_losses_below_zero_are_steady(program: Path, data: Path) -> None:
    """Rewards may be any numbers, and no share of a loss below zero means anything."""

    calls = itertools.count()

    def high(prompt: str, answers: list[str], reference: str) -> list[float]:
        return [10 - next(calls) / 10] * len(answers)  # falls, and so the loss rises

    result = Trainer(program).train(data, **{**RUN, "eval_every": 1}, objective=given(high))
    assert (result.steps, result.stopped) == (RUN["steps"], False)


@pytest.mark.parametrize("shaping", ["standardise", "rank"])
def test_losses_are_shaped_as_in_torch(shaping: Any, program: Path, data: Path) -> None:
    steps, queries = list[StepReport](), DEFAULTS["queries"]
    run = {**RUN, "eval_every": 0, "normalize": False}
    trainer = move(Trainer(program))
    trainer.train(data, **run, objective=given(), reward_shaping=shaping, on_step=steps.append)
    trainer.train(data, **run, reward_shaping=shaping, on_step=steps.append)  # the cross-entropy
    estimator = make_estimator("two_sided", queries=queries, eps=RUN["eps"])
    for step in steps:
        expected = estimator.projected_gradients(shaped(torch.from_numpy(step.losses), shaping))
        np.testing.assert_allclose(step.projected_gradients, expected.numpy(), rtol=1e-5, atol=1e-6)
        assert step.loss == pytest.approx(float(step.losses.mean()))


@pytest.mark.parametrize("name", PROGRAMS)
def test_accuracy_of_labels(
    name: str, rows: list[Any], data: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    program, steps = writing_program(tmp_path_factory, **PROGRAMS[name]), list[StepReport]()
    trainer = move(Trainer(program))
    before, d = lora_b_of(trainer), trainer.description
    run = {**RUN, "steps": 1, "eval_every": 1, "run_seed": 0, "eps": 0.5}
    result = trainer.train(data, **run, objective="accuracy", on_step=steps.append)
    assert result.evaluations[0].loss == move(Trainer(program)).evaluate(data, split="validation").loss
    batch = first_batch(rows, data)
    ids, mask, positions, _ = program_batch((batch * d.evaluation_rows)[: d.evaluation_rows], d)
    expected = []
    for group in groups_of(program, before, run["eps"], tmp_path / "group.safetensors"):
        logits: NDArray[np.float32] = group.evaluate_batch(ids, mask, positions)
        chosen = np.array(CANDIDATES)[logits[: len(batch), 0].argmax(axis=1)]
        expected.append(np.mean(chosen != [row.input_ids[-1] for row in batch]))
    np.testing.assert_allclose(steps[0].losses, expected, rtol=1e-6)


def test_accuracy_needs_answers_of_one_token(
    rng: torch.Generator, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One token is written to be compared with them."""
    program, journal = writing_program(tmp_path_factory, targets_per_row=2), tmp_path / "journal"
    rows = tiny_rows(rng, [9] * 8)
    rows[3].input_ids[-2] = CANDIDATES[0]
    rows[3] = replace(rows[3], targets=2)
    data = tiny_dataset(
        tmp_path / "rows.safetensors", rng, train=rows, validation=rows[:3], order=[*range(8)]
    )
    with pytest.raises(ValueError, match="row 3 of train: the accuracy .* of one token, got one of 2"):
        Trainer(program).train(data, **RUN, objective="accuracy", journal=journal)
    assert not journal.exists()


def test_a_reward_that_fails_ends_the_run(program: Path, data: Path, tmp_path: Path) -> None:
    """Nothing of its step is written, and the adapter is that of the steps before, to the bit."""

    def raising(answers: list[str]) -> list[float]:
        raise KeyError("word")

    def emptying(answers: list[str]) -> list[float]:
        answers.clear()
        return []

    faults: list[tuple[Callable[[list[str]], Any], type[BaseException], str]] = [
        (raising, RewardError, r"the reward failed \(KeyError: 'word'\)"),
        (lambda answers: [float("nan")] * len(answers), RewardError, "finite in float32, got \\[nan"),
        (lambda answers: [1e300] * len(answers), RewardError, "finite in float32, got \\[1e"),
        (lambda answers: [1.0], RewardError, "a number for each of 4 answers, got 1"),
        (emptying, RewardError, "a number for each of 4 answers, got 0"),
        (lambda answers: ["good"] * len(answers), RewardError, "the reward failed .ValueError: could not"),
        (lambda answers: exec("raise KeyboardInterrupt"), KeyboardInterrupt, ""),
    ]
    for number, (fault, error, message) in enumerate(faults):
        journal, calls = tmp_path / f"journal-{number}", [0]

        def reward(
            prompt: str, answers: list[str], reference: str, fault: Any = fault, calls: list[int] = calls
        ) -> Any:
            calls[0] += 1
            last = calls[0] == 2 * DEFAULTS["batch_size"]  # row of step 1
            return fault(answers) if last else scores(prompt, answers, reference)

        trainer = move(Trainer(program))
        trainer.save_adapter(start := tmp_path / "start.safetensors")
        with pytest.raises(error, match=message):
            run = {**RUN, "eval_every": 0}
            trainer.train(data, **run, objective=given(reward), journal=journal)
        assert len(read_journal(journal)[1]) == 1
        replayed = Trainer(program)
        replayed.load_adapter(start)
        replayed.replay(journal)
        assert_same_adapter(trainer, replayed)
        with Unchanged(trainer):
            trainer.generate([3, 4, 5])


def test_what_is_refused(program: Path, data: Path, tmp_path: Path, dataset: Path,
                         tmp_path_factory: pytest.TempPathFactory) -> None:  # fmt: skip
    """Before anything is written."""
    quiet, trainer, journal = Trainer(tiny_program(tmp_path_factory)), Trainer(program), tmp_path / "journal"
    with pytest.raises(ValueError, match="cannot write: it was exported without a context"):
        quiet.train(data, steps=1, objective=given(), journal=journal)
    for objective, shaping, message in (
        (
            given(max_new_tokens=CONTEXT),
            "none",
            r"row \d+ of train: the prompt has \d+ tokens, and wi",
        ),
        (given(max_new_tokens=0), "none", "max_new_tokens must be at least 1, got 0"),
        (given(max_new_tokens=2**63 - 1), "none", r"an answer of 9223372036854775807 it does not fit"),
        (given(temperature=-1.0), "none", "^temperature must be"),
        (given(name=""), "none", "the name of an objective must not be empty"),
        ("f1", "none", "objective must be a TextReward, 'accuracy' or None, got 'f1'"),
        (None, "best", "shaping must be one of none, standardise, rank, got 'best'"),
    ):
        with pytest.raises(ValueError, match=message), Unchanged(trainer):
            trainer.train(data, steps=1, objective=objective, reward_shaping=shaping, journal=journal)  # type: ignore[arg-type]
    assert not journal.exists()


def test_what_comes_before_the_adapters_act_is_written_once(
    rows: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """An update does not drive it out of the cache."""
    program = writing_program(tmp_path_factory, **PROGRAMS["one-sided, activated"])
    trainer, prompt = Trainer(program), [20, 21, 22, 23, 24, *INVOCATION, 30]
    trainer.generate(prompt)
    found = move(trainer).generate(prompt)
    assert found.reused == 5
    assert found.tokens == move(Trainer(program)).generate(prompt).tokens


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reward": None}, "reward must be a function, got None"),
        ({"tokenizer": "tokenizer.json"}, "tokenizer must be"),
    ],
)
def test_a_reward_that_is_none(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextReward(**{"reward": score, "tokenizer": Numbers(), **changes})
