"""Rewards of what a model writes, as objectives of a step."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig
from tiny import batch as tiny_batch
from tiny import llama
from tiny_texts import chat_tokenizer, questions
from transformers import LlamaConfig

from mobizo_kernels import ZerothOrder, wrap
from mobizo_kernels.data import ChatEncoder, collate, question
from mobizo_kernels.generation import Sampling, TextGenerator
from mobizo_kernels.lora import adapter_of
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.training import divergence, fit
from mobizo_kernels.training.objectives import REWARDS, LabelError, RewardError, TextReward


def task(invocation: bool = True) -> tuple[Any, Any, ChatEncoder, dict[str, torch.Tensor]]:
    """A wrapped model, its tokenizer and encoder, and a batch of three questions."""
    tokenizer = chat_tokenizer()
    encoder = ChatEncoder(tokenizer)
    sizes = {**tiny.SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 128}
    model = tiny.causal_lm(LlamaConfig(**sizes, num_key_value_heads=2))
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj", "down_proj"],
        alora_invocation_tokens=encoder.invocation if invocation else None,
        task_type="CAUSAL_LM",
    )
    wrap(model, config, seed=2)
    rows = encoder.encode([question(row["prompt"], row["response"]) for row in questions(3)])
    return model, tokenizer, encoder, collate(rows, 0)


@pytest.mark.parametrize("invocation", [True, False])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_group_is_rewarded_for_what_it_writes(invocation: bool, temperature: float) -> None:
    model, tokenizer, encoder, batch = task(invocation)
    sampling = Sampling(6, temperature)
    asked = []

    def reward(prompt: str, answers: list[str], reference: str) -> list[float]:
        asked.append((prompt, reference))
        return [float(len(answer)) for answer in answers]

    generator = TextGenerator(model, encoder.end_tokens)
    objective = TextReward(generator, tokenizer, reward, sampling)
    seeds, coeffs = torch.tensor([5, 6, 5]), torch.tensor([0.5, 0.5, -0.5])
    with adapter_of(model).directions.use(seeds, coeffs):
        found = objective(model, batch, 3)
        assert torch.equal(objective(model, batch, 3), found)  # the same random numbers
    wanted = [
        (f"<|start|>user\n{row['prompt']}<|end|>\n<|start|>assistant\n", row["response"])
        for row in questions(3)
    ]
    assert asked == wanted * 2
    prompts = [encoder.prompt((("user", row["prompt"]),)) for row in questions(3)]
    if not temperature:
        with adapter_of(model).directions.use(seeds, coeffs):
            answers = generator(prompts, sampling, 3)
        lengths = [
            [len(tokenizer.decode(a, skip_special_tokens=True).strip()) for a in group] for group in answers
        ]
        assert found.tolist() == pytest.approx([1 - sum(group) / 3 for group in lengths])
    assert len(set(found.tolist())) > 1


def test_a_reward_is_learned() -> None:
    """Short answers: nothing but rewards tells that they are wanted."""
    model, tokenizer, encoder, batch = task()

    def reward(prompt: str, answers: list[str], reference: str) -> list[float]:
        return [-float(len(answer)) for answer in answers]

    generator = TextGenerator(model, encoder.end_tokens)
    objective = TextReward(generator, tokenizer, reward, Sampling(6))
    zo = ZerothOrder(model, queries=8, eps=0.1, lr=0.1, normalize=True)
    result = fit(zo, [batch], steps=25, objective=objective, shaping="rank", stop_unsteady=False)
    assert sum(result.losses[-3:]) < 0.85 * sum(result.losses[:3])


def test_the_accuracy_of_labels(rng: torch.Generator) -> None:
    model = wrap(llama(), LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"]))
    batch = tiny_batch(rng, (7, 5, 9, 4, 6), labelled=1)
    batch["labels"][:, -1] = torch.tensor([7, 8, 9, 7, 8])
    loss = LabelledLoss(model, candidate_tokens=[7, 8, 9])
    seeds, coeffs = torch.tensor([1, 2]), torch.tensor([2.0, -2.0])
    with adapter_of(model).directions.use(seeds, coeffs):
        found = LabelError(loss)(model, batch, 2)
    for group in range(2):
        with adapter_of(model).directions.use(seeds[group : group + 1], coeffs[group : group + 1]):
            right = loss.logits(batch).argmax(dim=1) == torch.tensor([0, 1, 2, 0, 1])
        assert found[group].item() == pytest.approx(1 - right.float().mean().item())


@pytest.mark.parametrize(
    ("name", "answer", "reward"),
    [
        ("exact-match", "The cat", 1.0),
        ("f1", "cat dog", 2 / 3),
        ("rouge-l", "dog cat", 2 / 3),
        ("json-answer", '{"answer": "cat"}', 1.0),
        ("json-answer", '{"answer": 5}', 1.0),
        ("json-answer", '{"answer": {"a": 5}}', 0.8),
        ("json-answer", '{"answer": "cat", "b": 1}', 0.8),
        ("json-answer", '{"answer":', 0.6),
        ("json-answer", '{"b": 1}', 0.4),
        ("json-answer", "cat", 0.0),
        ("json-answer", '{"answer": true}', 0.8),
        ("json-answer", '{"answer": NaN}', 0.8),
        ("json-answer", '{"answer": 1, "answer": 2}', 0.8),
        ("json-answer", '[["answer", 1]]', 0.0),
        ("json-answer", "[" * 100_000, 0.0),
        ("ten-words", "a b c d e f g h i j", 1.0),
        ("ten-words", "a " * 20, 0.5),
        ("ten-words", "", 0.0),
    ],
)
def test_ready_made_rewards(name: str, answer: str, reward: float) -> None:
    assert REWARDS[name]("", [answer, answer], "cat") == pytest.approx([reward] * 2)


def test_what_a_reward_has_to_give() -> None:
    model, tokenizer, encoder, batch = task()
    generator = TextGenerator(model, encoder.end_tokens)
    bad = TextReward(generator, tokenizer, lambda *_: [1.0, 2.0], Sampling(1))
    with pytest.raises(ValueError, match="reward must give a number for each of 1 answers, got 2"):
        bad(model, batch, 1)
    for given, message in (
        ([float("nan")], "finite in float32, got .nan."),
        ([1e39], "finite in float32, got .1e.39."),
        (None, "the reward failed .TypeError: 'NoneType' object is not iterable."),
        (["much"], "the reward failed .ValueError: could not convert string to float: 'much'."),
    ):
        with pytest.raises(RewardError, match=message):
            TextReward(generator, tokenizer, lambda *_, given=given: given, Sampling(1))(model, batch, 1)
    with pytest.raises(ValueError, match="its generator is of another model"):
        bad(llama(), batch, 1)
    batch["labels"][1] = -100
    with pytest.raises(ValueError, match="row 1 has no label behind a prompt"):
        bad(model, batch, 1)


def test_a_loss_below_zero_runs_away_only_where_it_is_not_finite() -> None:
    guard = divergence.DivergenceGuard()
    found = [guard.validate(loss) for loss in (-0.1, -5.0, 3.0, float("nan"))]
    assert found == [False, False, False, True]
    assert not any(map(divergence.DivergenceGuard().validate, (0.0, 1e-3)))  # the best that a reward gives
    guard = divergence.DivergenceGuard()
    assert not any(guard.observe(loss, True) for loss in [-9.0] * 25 + [-8.99])
    assert list(
        itertools.starmap(divergence.DivergenceGuard(first_validation=1.0).validate, [(1.4,), (1.6,)])
    ) == [
        False,
        True,
    ]
