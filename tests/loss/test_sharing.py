"""Shared layers and shared prefixes against every group over the whole sequence."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from safetensors.torch import load_file
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    OPTConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen3Config,
)

from mobizo_kernels import wrap
from mobizo_kernels.lora import adapter_layers, adapter_of
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.loss.sharing import StateStore

INVOCATION = [7, 8]
SIZES = {**tiny.SIZES, "num_hidden_layers": 4}
GROUPED = {**SIZES, "num_key_value_heads": 2, "head_dim": 8}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**GROUPED),
    "qwen3": Qwen3Config(**GROUPED),
    "mistral": MistralConfig(**GROUPED, sliding_window=4),
    "gpt_neox": GPTNeoXConfig(**SIZES, rotary_pct=0.5),
    "opt": OPTConfig(**SIZES, ffn_dim=48, word_embed_proj_dim=32, do_layer_norm_before=True),
    "gemma": GemmaConfig(**GROUPED),
    "gemma2": Gemma2Config(**GROUPED, sliding_window=4, attn_logit_softcapping=2.0, query_pre_attn_scalar=8),
    "gemma3": Gemma3TextConfig(**GROUPED, sliding_window=4, query_pre_attn_scalar=8),
}
TARGETS = {"gpt_neox": ["query_key_value", "dense"], "opt": ["v_proj", "out_proj"]}


def wrapped(kind: str, rng: torch.Generator, **options: Any) -> Any:
    """A tiny model of this kind whose adapters are far from zero."""
    model = tiny.causal_lm(copy.deepcopy(CONFIGS[kind]))
    config = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=TARGETS.get(kind, ["q_proj", "v_proj", "down_proj"]),
        task_type="CAUSAL_LM", **options,
    )  # fmt: skip
    wrap(model, config)
    for layer in adapter_layers(model).values():
        layer.lora_b.data.copy_(0.5 * torch.randn(layer.lora_b.shape, generator=rng))
    return model


def rows_with_invocation(
    rng: torch.Generator,
    before: tuple[int, ...] = (5, 9, 2),
    after: tuple[int, ...] = (1, 3, 2),
    side: str = "left",
) -> dict[str, torch.Tensor]:
    """Rows of `before` tokens, the invocation, and `after` tokens, all of the last being labels."""
    width = max(map(sum, zip(before, after, strict=True))) + 2
    ids = torch.zeros(len(before), width, dtype=torch.int64)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for row, (first, last) in enumerate(zip(before, after, strict=True)):
        tokens = torch.randint(9, tiny.VOCABULARY, (first + 2 + last,), generator=rng)
        tokens[first : first + 2] = torch.tensor(INVOCATION)
        start = width - len(tokens) if side == "left" else 0
        ids[row, start : start + len(tokens)] = tokens
        mask[row, start : start + len(tokens)] = 1
        labels[row, start + first + 2 : start + len(tokens)] = tokens[first + 2 :]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def losses(
    model: Any, batch: dict[str, torch.Tensor], groups: int, *, share: bool, store: StateStore | None = None
) -> torch.Tensor:
    """[groups] with directions of their own, sharing or running every group over everything."""
    loss = LabelledLoss(model, store=store)
    if not share:
        loss._shared, loss._shared_for = None, adapter_of(model).config
    seeds, coeffs = torch.arange(groups) % max(1, groups // 2), torch.linspace(-0.2, 0.2, groups)
    with adapter_of(model).directions.use(seeds, coeffs):
        result = loss(batch, groups)
    assert (loss._shared is not None) == share
    return result


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_shared_prefix_changes_nothing(kind: str, side: str, rng: torch.Generator) -> None:
    model = wrapped(kind, rng, alora_invocation_tokens=INVOCATION)
    batch = rows_with_invocation(rng, side=side)
    for groups in (1, 6):
        expected = losses(model, batch, groups, share=False)
        torch.testing.assert_close(losses(model, batch, groups, share=True), expected, rtol=2e-5, atol=2e-5)
        assert groups == 1 or expected.std() > 1e-3


@pytest.mark.parametrize("kind", CONFIGS)
def test_shared_layers_change_nothing(kind: str, rng: torch.Generator) -> None:
    model = wrapped(kind, rng, layers_to_transform=[2, 3])
    batch = tiny.batch(rng)
    for groups in (1, 6):
        expected = losses(model, batch, groups, share=False)
        torch.testing.assert_close(losses(model, batch, groups, share=True), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("kind", CONFIGS)
def test_both_together_with_states_kept(kind: str, rng: torch.Generator, tmp_path: Path) -> None:
    model = wrapped(kind, rng, layers_to_transform=[2, 3], alora_invocation_tokens=INVOCATION)
    first = rows_with_invocation(rng)
    second = {name: tensor[[2, 0]] for name, tensor in first.items()}
    store, files = StateStore(), StateStore(0, tmp_path)
    for batch in (first, second, rows_with_invocation(rng), first):
        expected = losses(model, batch, 4, share=False)
        for kept in (None, store, files):
            got = losses(model, batch, 4, share=True, store=kept)
            torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5)
    # Six rows, and none of the comparison that a loss begins with.
    assert len(store) == 6 and len(files) == 0 and len(list(tmp_path.iterdir())) == 6


def test_states_are_computed_once(rng: torch.Generator, tmp_path: Path) -> None:
    model = wrapped("llama", rng, layers_to_transform=[2, 3], alora_invocation_tokens=INVOCATION)
    loss = LabelledLoss(model, store=StateStore(0, tmp_path))
    batch = rows_with_invocation(rng)
    runs: list[tuple[int, ...]] = []
    model.model.layers[0].self_attn.register_forward_pre_hook(
        lambda module, args, kwargs: runs.append(kwargs["hidden_states"].shape[:2]), with_kwargs=True
    )
    first = loss(batch, 4)
    # Each row alone, up to its last prediction, through all layers to the keys and values of the last.
    assert runs[-3:] == [(1, 5 + 2), (1, 9 + 4), (1, 2 + 3)]
    runs.clear()
    assert loss(batch, 4).equal(first) and not runs
    again = LabelledLoss(model, store=StateStore(0, tmp_path))
    again._shared_decoder()
    runs.clear()
    assert again(batch, 4).equal(first) and not runs


@pytest.mark.parametrize("tail", [False, True])
def test_states_that_enter_modules(tail: bool, rng: torch.Generator) -> None:
    """They are those of each row alone, at the token before its label, as the model itself gives them."""
    options: dict[str, Any] = {"layers_to_transform": [2, 3]}
    if tail:
        options["alora_invocation_tokens"] = INVOCATION
    model = wrapped("llama", rng, **options)
    batch = rows_with_invocation(rng)
    modules = [model.model.layers[2].mlp.down_proj, model.model.layers[3], model.model.norm]
    compiled = LabelledLoss(model, compile=True)
    got = compiled.states_entering(modules, batch)
    assert compiled.compiles
    for number, module in enumerate([*modules, model.lm_head]):
        expected: list[torch.Tensor] = []

        def note(_: Any, args: Any, kwargs: Any, into: list[torch.Tensor] = expected) -> None:
            into.append(args[0] if args else kwargs["hidden_states"])

        handle = module.register_forward_pre_hook(note, with_kwargs=True)
        places = []
        for ids, mask, labels in zip(
            *(batch[name] for name in ("input_ids", "attention_mask", "labels")), strict=True
        ):
            model(input_ids=ids[mask.bool()][None], use_cache=False)
            places.append((labels[mask.bool()][1:] != -100).nonzero()[:, 0])
        handle.remove()
        wanted = torch.cat([states[0][place] for states, place in zip(expected, places, strict=True)])
        torch.testing.assert_close(got[number], wanted, rtol=0, atol=1e-4 * wanted.abs().max().item())


def test_states_depend_on_the_row_alone(rng: torch.Generator) -> None:
    """To the bit, whatever rows there are beside it, and whether they were kept or are made again."""
    model = wrapped("llama", rng, layers_to_transform=[2, 3], alora_invocation_tokens=INVOCATION)
    batch = rows_with_invocation(rng, (5, 20, 2, 11, 20), (1, 3, 2, 1, 4))

    def kept(rows: list[int]) -> dict[bytes, list[torch.Tensor]]:
        store = StateStore()
        LabelledLoss(model, store=store)({name: tensor[rows] for name, tensor in batch.items()}, 2)
        return {
            key: [states.hidden, *(tensor for pair in states.layers.values() for tensor in pair)]
            for key, states in store._rows.items()
        }

    together = kept([0, 1, 2, 3, 4])
    for rows in ([0], [1], [2, 0], [3, 1, 2], [4] * 9):
        for key, tensors in kept(rows).items():
            assert all(map(torch.equal, tensors, together[key]))
    expected = LabelledLoss(model, store=StateStore())(batch, 2)
    for room in (0, 4_000, 10_000):
        loss = LabelledLoss(model, store=StateStore(room))
        for _ in range(2):
            assert loss(batch, 2).equal(expected)


def test_states_are_those_of_the_positions(rng: torch.Generator) -> None:
    model = wrapped("llama", rng, alora_invocation_tokens=INVOCATION)
    batch = rows_with_invocation(rng)
    positions = (batch["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    plain, kept = LabelledLoss(model), LabelledLoss(model, store=StateStore())
    for moved in (positions, positions + 30):
        of_batch = {**batch, "position_ids": moved}
        torch.testing.assert_close(kept(of_batch, 2), plain(of_batch, 2), rtol=2e-5, atol=2e-5)


def test_work_that_is_done(rng: torch.Generator) -> None:
    model = wrapped("llama", rng, layers_to_transform=[2, 3], alora_invocation_tokens=INVOCATION)
    loss = LabelledLoss(model)
    batch = rows_with_invocation(rng, (6, 6), (1, 1))
    loss(batch, 1)
    tokens = {1: [], 2: []}  # type: dict[int, list[tuple[int, ...]]]
    for layer, shapes in tokens.items():
        model.model.layers[layer].mlp.register_forward_pre_hook(
            lambda module, args, shapes=shapes: shapes.append(tuple(args[0].shape[:2]))
        )
    with adapter_of(model).directions.use(torch.arange(8), torch.full((8,), 0.1)):
        loss(batch, 8)
    assert tokens == {1: [(2, 6), (2, 2)], 2: [(2, 6), (16, 2)]}


def test_no_prefix_at_all(rng: torch.Generator) -> None:
    model = wrapped("llama", rng, alora_invocation_tokens=INVOCATION)
    batch = rows_with_invocation(rng, (0, 0, 0))
    expected = losses(model, batch, 4, share=False)
    torch.testing.assert_close(losses(model, batch, 4, share=True), expected, rtol=2e-5, atol=2e-5)


def test_an_adapted_head(rng: torch.Generator) -> None:
    model = tiny.llama(tie_word_embeddings=False)
    config = peft.LoraConfig(
        r=3, target_modules=["v_proj", "lm_head"], task_type="CAUSAL_LM", alora_invocation_tokens=INVOCATION
    )
    for layer in adapter_layers(wrap(model, config)).values():
        layer.lora_b.data.copy_(torch.randn(layer.lora_b.shape, generator=rng))
    batch = rows_with_invocation(rng)
    expected = losses(model, batch, 4, share=False)
    torch.testing.assert_close(losses(model, batch, 4, share=True), expected, rtol=2e-5, atol=2e-5)


def test_batches_that_cannot_be_split(rng: torch.Generator) -> None:
    loss = LabelledLoss(wrapped("llama", rng, alora_invocation_tokens=INVOCATION))
    batch = rows_with_invocation(rng)
    without = {**batch, "input_ids": torch.where(batch["input_ids"] == 8, 9, batch["input_ids"])}
    with pytest.raises(ValueError, match=r"row 0 does not hold the invocation tokens \[7, 8\]"):
        loss(without)
    early = {name: tensor.clone() for name, tensor in batch.items()}
    early["labels"][1, 4] = early["input_ids"][1, 4]
    with pytest.raises(ValueError, match="row 1 has a label that is predicted before"):
        loss(early)


def test_a_model_that_cannot_share_still_computes(rng: torch.Generator) -> None:
    model = wrapped("llama", rng, alora_invocation_tokens=INVOCATION)
    expected = losses(model, batch := rows_with_invocation(rng), 4, share=True)
    model.config.attention_chunk_size = 8
    loss = LabelledLoss(model)
    with (
        pytest.warns(UserWarning, match="attends within chunks"),
        adapter_of(model).directions.use(torch.arange(4) % 2, torch.linspace(-0.2, 0.2, 4)),
    ):
        torch.testing.assert_close(loss(batch, 4), expected, rtol=2e-5, atol=2e-5)


ROPES: dict[str, PretrainedConfig] = {
    "dynamic": LlamaConfig(
        **{**GROUPED, "max_position_embeddings": 12},
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0},
    ),
    "longrope": Phi3Config(
        **{**GROUPED, "max_position_embeddings": 48},
        original_max_position_embeddings=12,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 100.0, "short_factor": [1.0] * 4, "long_factor": [3.0] * 4,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("before", [(8, 5, 2), (9, 5, 2), (10, 5, 2), (11, 8, 2), (15, 14, 13)])
@pytest.mark.parametrize("rope", ROPES)
def test_a_rotation_that_changes_with_the_length(
    rope: str, before: tuple[int, ...], rng: torch.Generator
) -> None:
    """Keys of a prefix below the length of the change are not those of the same tokens in a longer row."""
    model = tiny.causal_lm(copy.deepcopy(ROPES[rope]))
    config = peft.LoraConfig(r=3, target_modules=["o_proj"], alora_invocation_tokens=INVOCATION)
    for layer in adapter_layers(wrap(model, config)).values():
        layer.lora_b.data.copy_(torch.randn(layer.lora_b.shape, generator=rng))
    batch = rows_with_invocation(rng, before)
    expected = losses(model, batch, 4, share=False)
    for store in (None, StateStore()):
        got = losses(model, batch, 4, share=True, store=store)
        torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5)


def test_rows_of_several_texts_are_not_divided(rng: torch.Generator) -> None:
    model = wrapped("llama", rng, layers_to_transform=[2, 3], alora_invocation_tokens=INVOCATION)
    texts = rows_with_invocation(rng, (5,), (2,))
    batch = {name: tensor.repeat(1, 2) for name, tensor in texts.items() if name != "attention_mask"}
    batch["labels"][:, :9] = -100
    batch["position_ids"] = torch.arange(9).repeat(1, 2)
    for store in (None, StateStore()):
        expected = losses(model, batch, 4, share=False)
        got = losses(model, batch, 4, share=True, store=store)
        torch.testing.assert_close(got, expected, rtol=2e-5, atol=2e-5)
    # The last text alone, for the invocation that counts is the last one.
    torch.testing.assert_close(got, losses(model, texts, 4, share=True), rtol=2e-5, atol=2e-5)


def test_the_store_is_bounded(rng: torch.Generator, tmp_path: Path) -> None:
    model = wrapped("llama", rng, alora_invocation_tokens=INVOCATION)
    whole = StateStore()
    LabelledLoss(model, store=whole)(rows_with_invocation(rng), 2)
    (row,) = {states.bytes for states in whole._rows.values() if states.hidden.shape[0] == 4}
    store = StateStore(row, tmp_path, row)
    LabelledLoss(model, store=store)(rows_with_invocation(rng), 2)
    kept = [states.bytes for states in store._rows.values()]
    files = [sum(t.nbytes for t in load_file(file).values()) for file in tmp_path.iterdir()]
    assert 0 < sum(kept) <= row and 0 < sum(files) <= row
    with pytest.raises(ValueError, match="max_bytes must be at least 0, got -1"):
        StateStore(-1)


def test_a_damaged_file_is_made_again(rng: torch.Generator, tmp_path: Path) -> None:
    model = wrapped("llama", rng, alora_invocation_tokens=INVOCATION)
    batch = rows_with_invocation(rng)
    expected = LabelledLoss(model, store=StateStore(0, tmp_path))(batch, 2)
    for file in tmp_path.iterdir():
        file.write_bytes(file.read_bytes()[:50])
    assert LabelledLoss(model, store=StateStore(0, tmp_path))(batch, 2).equal(expected)


def test_the_comparison_leaves_no_trace(rng: torch.Generator) -> None:
    model = wrapped("llama", rng, alora_invocation_tokens=INVOCATION)
    batch, directions = rows_with_invocation(rng), adapter_of(model).directions
    seeds, coeffs = torch.arange(4), torch.full((4,), 0.1)
    loss = LabelledLoss(model)
    with directions.use(seeds, coeffs, "rademacher"):
        first = loss(batch, 4)  # compares, and then computes
        assert loss(batch, 4).equal(first)
    assert directions.distribution == "gaussian" and len(directions.seeds) == 1
