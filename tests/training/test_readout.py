"""The closed-form start: its solution, the adapter that it is written as, the steps that go on from it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from helpers import assert_same_bits
from peft import LoraConfig, PeftModel
from sklearn.linear_model import LogisticRegression
from transformers import Gemma2Config, GPT2Config, GraniteConfig, LlamaConfig

from mobizo_kernels import ZerothOrder, load_adapter, save_adapter, wrap
from mobizo_kernels.choices import ReadoutLayers
from mobizo_kernels.data import EncodedExample, collate
from mobizo_kernels.journal import replay
from mobizo_kernels.lora import adapter_layers, held_head, hold_head, tuned_layers
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.training import Readout, fit, readout, rows_in_turn, score_rows
from mobizo_kernels.training.logistic import RIDGES

WORDS = [5, 9, 7]
ENDING = [3, 4]


def rows(count: int, rng: torch.Generator, labels: int = 3) -> list[EncodedExample]:
    """Texts whose label is that of one of their tokens, mostly; they end on the invocation tokens."""
    made = []
    for number in range(count):
        label = number % labels
        tokens = torch.randint(20, tiny.VOCABULARY, (5,), generator=rng).tolist()
        said = label if torch.rand((), generator=rng) < 0.8 else (label + 1) % labels
        tokens[number % 5] = 10 + said
        made.append(EncodedExample([*tokens[: 3 + number % 3], 10 + said, *ENDING, WORDS[label]], label))
    return made


def wrapped(model: Any = None, **options: Any) -> Any:
    config = {"r": 3, "target_modules": ["q_proj", "v_proj"], "alora_invocation_tokens": ENDING, **options}
    return wrap(tiny.llama() if model is None else model, LoraConfig(task_type="CAUSAL_LM", **config))


def read_out(
    model: Any, rng: torch.Generator, labels: int = 3
) -> tuple[Readout, list[EncodedExample], list[EncodedExample]]:
    train, validation = rows(90, rng, labels)[:-4], rows(60, rng, labels)
    loss = LabelledLoss(model, candidate_tokens=WORDS[:labels])
    return readout(loss, train, validation), train, validation


def hidden_states(model: Any, rows: list[EncodedExample]) -> tuple[np.ndarray, np.ndarray]:
    """[n, H] before the head, and its outputs, by the model alone."""
    hidden: list[torch.Tensor] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(
        lambda _, args: hidden.append(args[0][0, -1])
    )
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([row.input_ids[:-1]])).logits[0, -1] for row in rows]
    handle.remove()
    return torch.stack(hidden).double().numpy(), torch.stack(logits).double().numpy()


def solution(model: Any) -> np.ndarray:
    head = held_head(model)
    assert head is not None and head.scaling == 1
    return (head.lora_b.double() @ head.lora_a.double()).numpy()


def weights_of(rows: list[EncodedExample]) -> np.ndarray:
    labels = np.array([row.label for row in rows])
    counts = np.bincount(labels)
    return 1 / (len(counts) * counts[labels])


def test_it_is_that_of_scikit_learn(rng: torch.Generator) -> None:
    """Where the label words have no logits of their own, which scikit-learn cannot begin from."""
    model = wrapped()
    model.lm_head.weight.data[WORDS] = 0
    found, train, _ = read_out(model, rng)
    assert found.ridge is not None and found.rank == 2 and found.rows == len(train)
    hidden, _ = hidden_states(tiny.llama(), train)
    spread = hidden.std(axis=0)
    hidden /= spread
    penalty = found.ridge * (hidden**2).mean()
    judge = LogisticRegression(C=1 / penalty, fit_intercept=False, tol=1e-10, max_iter=10_000)
    judge.fit(hidden, [row.label for row in train], sample_weight=weights_of(train))
    expected = (judge.coef_ - judge.coef_.mean(axis=0)) / spread
    np.testing.assert_allclose(solution(model)[WORDS], expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def uneven_llama() -> Any:
    """States that differ a hundredfold from axis to axis, as those of real models do."""
    model = tiny.llama()
    norm = model.model.norm.weight
    norm.data.copy_(torch.logspace(-1, 1, len(norm)))
    return model


@pytest.mark.parametrize(
    ("base", "labels"), [(tiny.llama, 2), (tiny.llama, 3), (uneven_llama, 2), (uneven_llama, 3)]
)
def test_it_stands_on_the_logits_of_the_model(base: Any, labels: int, rng: torch.Generator) -> None:
    """There is no slope left: of the loss with what the words' rows had before, and of the penalty."""
    model = wrapped(base())
    found, train, _ = read_out(model, rng, labels)
    assert found.ridge is not None and found.rank == labels - 1
    hidden, logits = hidden_states(base(), train)
    added = solution(model)
    assert not np.delete(added, WORDS[:labels], axis=0).any()
    added = added[WORDS[:labels]]
    scores = np.exp(logits[:, WORDS[:labels]] + hidden @ added.T)
    errors = scores / scores.sum(axis=1, keepdims=True) - np.eye(labels)[[row.label for row in train]]
    spread = hidden.std(axis=0)
    slope = (weights_of(train)[:, None] * errors).T @ (hidden / spread)
    penalty = found.ridge * ((hidden / spread) ** 2).mean() * added * spread
    np.testing.assert_allclose(slope, -penalty, rtol=0, atol=1e-4 * np.abs(penalty).max())


@pytest.mark.parametrize(
    "model",
    [
        tiny.llama,
        lambda: tiny.causal_lm(GraniteConfig(**tiny.SIZES, num_key_value_heads=2, logits_scaling=4.0)),
        lambda: tiny.causal_lm(
            Gemma2Config(**tiny.SIZES, num_key_value_heads=2, head_dim=8, final_logit_softcapping=9.0)
        ),
    ],
    ids=["plain", "scaled", "capped"],
)
def test_the_losses_are_those_of_the_model(model: Any, rng: torch.Generator) -> None:
    """What it says of the validation rows is what the model with the adapter does on them."""
    model = wrapped(model())
    loss = LabelledLoss(model, candidate_tokens=WORDS)
    train, validation = rows(90, rng), rows(60, rng)
    before = score_rows(loss, validation).losses.mean()
    found = readout(loss, train, validation)
    after = score_rows(loss, validation).losses.mean()
    assert found.losses[None] == pytest.approx(before, rel=1e-5)
    assert found.losses[found.ridge] == pytest.approx(after, rel=1e-5) == min(found.losses.values())
    assert after < 0.8 * before


def test_steps_go_on_from_it_and_replay_gives_the_bits(tmp_path: Path, rng: torch.Generator) -> None:
    model = wrapped()
    _, train, validation = read_out(model, rng)
    head, start = held_head(model), tmp_path / "start"
    assert head is not None
    before = head.lora_a.clone(), head.lora_b.clone()
    save_adapter(model, start)

    def batches() -> Iterator[list[EncodedExample]]:
        return (train[3 * number : 3 * number + 3] for number in itertools.cycle(range(20)))

    zo = ZerothOrder(model, queries=4, lr=0.05, normalize=True, candidate_tokens=WORDS)
    result = fit(
        zo, batches(), steps=12, validation=validation, keep="last", journal=tmp_path / "journal", data="rows"
    )
    assert len(result.losses) == 12
    assert_same_bits(head.lora_a, before[0])
    assert_same_bits(head.lora_b, before[1])
    assert all(layer.lora_b.any() for layer in tuned_layers(model).values())

    again = load_adapter(tiny.llama(), start)
    assert replay(again, tmp_path / "journal") == 12
    for name, layer in adapter_layers(model).items():
        assert_same_bits(adapter_layers(again)[name].lora_b, layer.lora_b)
    for other in (wrapped(), load_adapter(tiny.llama(), start)):
        if held_head(other) is None and "lm_head" in adapter_layers(other):
            hold_head(other)
            other.lm_head.lora_b.data[WORDS[0]] += 1
        with pytest.raises(ValueError, match="is of another LoRA-A|begins with another LoRA-B|parameters"):
            replay(other, tmp_path / "journal")


def test_a_run_ends_no_worse_than_it(rng: torch.Generator) -> None:
    model = wrapped()
    found, train, validation = read_out(model, rng)
    batches = (train[3 * number : 3 * number + 3] for number in range(8))
    zo = ZerothOrder(model, queries=2, lr=30.0, normalize=True, candidate_tokens=WORDS)
    result = fit(zo, batches, steps=8, validation=validation, stop_unsteady=False)
    assert result.best_step == 0
    losses = score_rows(LabelledLoss(model, candidate_tokens=WORDS), validation).losses
    assert losses.mean() == pytest.approx(found.losses[found.ridge], rel=1e-5)


def test_labels_that_nothing_tells_get_no_adapter(rng: torch.Generator) -> None:
    """Where every ridge does worse on the validation rows, the model is left as it is."""
    model, train = wrapped(), rows(30, rng)
    swapped = [EncodedExample(row.input_ids, (row.label + 1) % 3) for row in train]
    model.lm_head.weight.data[WORDS] = 0
    found = readout(LabelledLoss(model, candidate_tokens=WORDS), train, swapped)
    assert (found.ridge, found.rank) == (None, 0) and held_head(model) is None
    assert set(tuned_layers(model)) == set(adapter_layers(model))
    assert len(found.losses) < len(RIDGES)


def test_states_of_zeros_tell_nothing(rng: torch.Generator) -> None:
    model = wrapped()
    model.model.norm.weight.data.zero_()
    found, _, _ = read_out(model, rng)
    assert (found.ridge, found.rank) == (None, 0)
    assert set(found.losses.values()) == {found.losses[None]}


def test_rows_in_turn(rng: torch.Generator) -> None:
    many = [row for row in rows(30, rng) if row.label != 2 or row.input_ids[0] % 2][:20]
    few = rows_in_turn(many, 9)
    assert [row.label for row in few[:3]] == [0, 1, 2] and len(few) == 9
    assert sorted(map(id, rows_in_turn(many, 100))) == sorted(map(id, many))
    assert rows_in_turn(many, 9) == few != rows_in_turn(many, 9, seed=1)


def test_errors(rng: torch.Generator) -> None:
    model, train = wrapped(), rows(12, rng)
    loss = LabelledLoss(model, candidate_tokens=WORDS)
    with pytest.raises(ValueError, match=r"train needs rows of every label from 0 to 2, got \[0, 1\]"):
        readout(loss, [row for row in train if row.label < 2], train)
    with pytest.raises(ValueError, match="validation needs rows whose answer is one token, got one of 2"):
        readout(loss, train, [*train, EncodedExample([20, 21, 5, 9], 0, 2)])
    with pytest.raises(ValueError, match="loss needs candidate_tokens"):
        readout(LabelledLoss(model), train, train)
    readout(loss, train, train)
    with pytest.raises(ValueError, match="the LM head of LlamaForCausalLM has an adapter already"):
        readout(loss, train, train)


def with_dropout() -> Any:
    sizes = {name: value for name, value in tiny.SIZES.items() if name != "intermediate_size"}
    return wrapped(tiny.causal_lm(GPT2Config(**sizes)), target_modules=["c_attn"])


def test_the_modes_of_the_moment_make_no_difference(rng: torch.Generator) -> None:
    """Neither that of training, in which there is dropout, nor inference_mode."""
    model, twin, state = with_dropout(), with_dropout().train(), rng.get_state()
    expected = read_out(model, rng)[0]
    rng.set_state(state)
    with torch.inference_mode():
        got = read_out(twin, rng)[0]
    assert got.losses == expected.losses and got.rank == expected.rank > 0
    assert twin.training and twin.transformer.drop.training
    assert_same_bits(twin.lm_head.lora_b, model.lm_head.lora_b)


def test_models_that_have_nothing_to_read_out(rng: torch.Generator) -> None:
    train, loss = rows(12, rng), LabelledLoss(tiny.llama(), candidate_tokens=WORDS)
    with pytest.raises(ValueError, match="LlamaForCausalLM is not wrapped"):
        readout(loss, train, train)
    model = wrapped()
    loss = LabelledLoss(model, candidate_tokens=WORDS)
    loss(collate(train, 0))  # which makes sure of the way it takes
    model.model.norm.weight.data[0] = torch.inf
    with pytest.raises(ValueError, match="train has rows whose hidden states are not finite"):
        readout(loss, train, train)
    assert held_head(model) is None


def deep_llama() -> Any:
    """Six layers that write nothing to some axes, as those of large models hardly do."""
    model = tiny.causal_lm(LlamaConfig(**{**tiny.SIZES, "num_hidden_layers": 6}, num_key_value_heads=2))
    with torch.no_grad():
        model.model.embed_tokens.weight[:, -4:] = 0
        for layer in model.model.layers:
            for linear in (layer.mlp.down_proj, layer.self_attn.o_proj):
                linear.weight[-4:] = 0
    return model


def unlike_rows(count: int, rng: torch.Generator) -> list[EncodedExample]:
    """Texts whose label is whether two tokens are unlike, which takes neurons to see."""
    made = []
    for first, second in torch.randint(2, (count, 2), generator=rng).tolist():
        text, label = torch.randint(20, tiny.VOCABULARY, (2,), generator=rng).tolist(), first ^ second
        made.append(EncodedExample([*text, 10 + first, 12 + second, *ENDING, WORDS[label]], label))
    return made


def read_layers(model: Any, rng: torch.Generator, layers: ReadoutLayers = "several") -> tuple[Readout, Any]:
    train, validation = unlike_rows(400, rng), unlike_rows(200, rng)
    found = readout(LabelledLoss(model, candidate_tokens=WORDS[:2]), train, validation, layers=layers)
    return found, validation


def test_several_layers_tell_more(tmp_path: Path, rng: torch.Generator) -> None:
    """What is said of the validation rows is what the adapter does on them, and one that PEFT has loaded."""
    state = rng.get_state()
    last, _ = read_layers(wrapped(deep_llama()), rng, "last")
    rng.set_state(state)
    model = wrapped(deep_llama(), target_modules="all-linear")
    found, validation = read_layers(model, rng)
    assert found.layers == (4, 5) and last.layers == () and found.rank == 1
    assert found.losses[None] == pytest.approx(last.losses[None], rel=1e-5)
    assert found.losses[found.ridge] < last.losses[last.ridge] - 0.02
    scored = score_rows(LabelledLoss(model, candidate_tokens=WORDS[:2]), validation)
    assert found.losses[found.ridge] == pytest.approx(scored.losses.mean(), rel=1e-2)
    save_adapter(model, tmp_path)
    loaded, logits = PeftModel.from_pretrained(deep_llama(), tmp_path), []
    with torch.no_grad():
        for row in validation[:20]:
            logits.append(loaded(input_ids=torch.tensor([row.input_ids[:-1]])).logits[0, -1, WORDS[:2]])
    expected = torch.from_numpy(scored.scores[:20])
    torch.testing.assert_close(torch.stack(logits), expected, rtol=1e-3, atol=1e-3)


def test_steps_and_replay_go_on_from_several_layers(tmp_path: Path, rng: torch.Generator) -> None:
    """A is another than was drawn: the start holds it, and the journal knows it."""
    model = wrapped(deep_llama(), target_modules="all-linear")
    found, validation = read_layers(model, rng)
    assert found.layers
    save_adapter(model, tmp_path / "start")
    batches = (unlike_rows(4, rng) for _ in range(4))
    zo = ZerothOrder(model, queries=2, lr=1e-3, normalize=True, candidate_tokens=WORDS[:2])
    run: dict[str, Any] = {"keep": "last", "journal": tmp_path / "journal", "data": "rows"}
    fit(zo, batches, steps=4, validation=validation, **run)
    again = load_adapter(deep_llama(), tmp_path / "start")
    assert replay(again, tmp_path / "journal") == 4
    for name, layer in adapter_layers(model).items():
        assert_same_bits(adapter_layers(again)[name].lora_a, layer.lora_a)
        assert_same_bits(adapter_layers(again)[name].lora_b, layer.lora_b)
    with pytest.raises(ValueError, match="parameters|is of another LoRA-A"):
        replay(wrapped(deep_llama(), target_modules="all-linear"), tmp_path / "journal")


def test_layers_that_tell_nothing_more_are_left_alone(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the last states do better on the validation rows, or something fails, A and B are as drawn."""
    model = wrapped(deep_llama(), target_modules="all-linear")
    drawn = {name: layer.lora_a.clone() for name, layer in adapter_layers(model).items()}
    loss, train = LabelledLoss(model, candidate_tokens=WORDS), rows(30, rng)
    swapped = [EncodedExample(row.input_ids, (row.label + 1) % 3) for row in train]
    assert readout(loss, train, swapped, layers="several").layers == ()
    monkeypatch.setattr(model, "set_submodule", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        readout(loss, rows(300, rng), rows(150, rng), layers="several")
    for name, a in drawn.items():
        assert_same_bits(adapter_layers(model)[name].lora_a, a)
        assert not adapter_layers(model)[name].lora_b.any()


def test_layers_that_cannot_be_read_are_refused(rng: torch.Generator) -> None:
    loss = LabelledLoss(wrapped(), candidate_tokens=WORDS)
    with pytest.raises(ValueError, match="layers='several' needs .* adapters in all linears"):
        readout(loss, rows(30, rng), rows(30, rng), layers="several")
