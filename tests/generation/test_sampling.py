"""How the next token is chosen, beside transformers' logits processors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from mobizo_kernels.generation import Sampling


@pytest.mark.parametrize("temperature", [0.3, 1.7])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.6), (9, 0.8), (1, 0.5), (99, 1e-6)])
def test_probabilities_are_those_of_transformers(
    temperature: float, top_k: int, top_p: float, rng: torch.Generator
) -> None:
    logits = 3 * torch.randn(2, 4, 37, generator=rng)
    expected = TemperatureLogitsWarper(temperature)(None, logits.flatten(0, 1))
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    found = Sampling(temperature=temperature, top_k=top_k, top_p=top_p).probabilities(logits)
    torch.testing.assert_close(found.flatten(0, 1), expected.double().softmax(-1), rtol=1e-5, atol=1e-7)


def test_tokens_are_drawn_with_their_probabilities(rng: torch.Generator) -> None:
    sampling = Sampling(temperature=0.9, top_k=4)
    logits, count = torch.randn(1, 1, 7, generator=rng), 20_000
    uniforms = torch.rand(count, generator=rng, dtype=torch.float64)
    drawn = sampling.choose(logits.expand(1, count, 7), uniforms)[0]
    shares = drawn.bincount(minlength=7) / count
    wanted = sampling.probabilities(logits)[0, 0]
    assert (shares[wanted == 0] == 0).all()
    torch.testing.assert_close(shares.double(), wanted, rtol=0, atol=0.02)


def test_groups_share_their_random_numbers(rng: torch.Generator) -> None:
    sampling = Sampling(temperature=1.0)
    logits = torch.randn(1, 500, 11, generator=rng)
    near = torch.cat([logits, logits, logits + 0.01 * torch.randn(logits.shape, generator=rng)])
    found = sampling.choose(near, torch.rand(500, generator=rng, dtype=torch.float64))
    assert (found[0] == found[1]).all()
    assert (found[0] != found[2]).float().mean() < 0.05


def test_extreme_numbers_choose_a_token_that_has_a_probability() -> None:
    logits = torch.tensor([0.0, -torch.inf, 0.0, -torch.inf]).expand(1, 3, 4)
    found = Sampling(temperature=1.0).choose(
        logits, torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    )
    assert found.tolist() == [[0, 2, 2]]


def test_the_likeliest_is_taken_without_a_temperature(rng: torch.Generator) -> None:
    logits = torch.randn(3, 5, 11, generator=rng)
    assert torch.equal(Sampling(top_k=3).choose(logits, torch.rand(5)), logits.argmax(-1))


@pytest.mark.parametrize(
    "bad",
    [{"max_new_tokens": 0}, {"temperature": -1.0}, {"temperature": float("nan")}, {"top_k": -1},
     {"top_p": 0.0}, {"top_p": 1.1}, {"seed": -1}],
)  # fmt: skip
def test_what_is_out_of_range_is_named(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(ValueError, match=f"^{name} must be"):
        Sampling(**bad)


def test_a_temperature_next_to_zero_is_greedy(rng: torch.Generator) -> None:
    logits = torch.randn(2, 3, 11, generator=rng)
    for temperature in (1e-12, 1e-310):
        chosen = Sampling(1, temperature).choose(logits, torch.rand(3, generator=rng, dtype=torch.float64))
        assert torch.equal(chosen, logits.argmax(dim=-1))
