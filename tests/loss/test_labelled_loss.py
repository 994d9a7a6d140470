"""The labelled-token loss against the models' own logits in float64: paddings, groups, chunks, candidates."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig
from tiny import cross_entropy, row_logits
from torch import nn
from transformers import (
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GPT2Config,
    GPTNeoXConfig,
    GraniteConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    OPTConfig,
    PretrainedConfig,
    Qwen3Config,
    T5Config,
    T5ForConditionalGeneration,
)

from mobizo_kernels.lora import adapter_layers, adapter_of, wrap
from mobizo_kernels.loss import LabelledLoss, labelled_loss

KV: dict[str, Any] = {**tiny.SIZES, "num_key_value_heads": 2}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**KV),
    "llama-tied": LlamaConfig(**KV, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**KV, head_dim=8),
    "mistral": MistralConfig(**KV),
    "gpt-neox": GPTNeoXConfig(**tiny.SIZES),
    "gpt2": GPT2Config(vocab_size=tiny.VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "opt": OPTConfig(**tiny.SIZES, ffn_dim=48, word_embed_proj_dim=16),
    "gemma2-softcap": Gemma2Config(
        **{**KV, "attn_implementation": "eager"},
        head_dim=8,
        query_pre_attn_scalar=8,
        final_logit_softcapping=3.0,
    ),
    "granite-scaling": GraniteConfig(**KV, logits_scaling=3.0),
    "cohere-scale": CohereConfig(**KV, logit_scale=0.25),
    "falcon-h1-multiplier": FalconH1Config(
        **KV, lm_head_multiplier=0.5, mamba_d_ssm=32, mamba_n_heads=4, mamba_d_head=8, mamba_d_state=8
    ),
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_loss_is_that_of_the_rows_without_padding(
    config: PretrainedConfig, side: str, rng: torch.Generator
) -> None:
    model, batch = tiny.causal_lm(config), tiny.batch(rng, side=side)
    expected = cross_entropy(*row_logits(model, batch))
    assert LabelledLoss(model)(batch).tolist() == [pytest.approx(expected, rel=1e-4)]


def test_every_token_labelled_in_a_padded_batch(rng: torch.Generator) -> None:
    model, batch = tiny.llama(), tiny.batch(rng)
    batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    expected = cross_entropy(*row_logits(model, batch))  # a row's first token has nothing before it
    assert LabelledLoss(model)(batch).tolist() == [pytest.approx(expected, rel=1e-5)]


def test_without_an_attention_mask(rng: torch.Generator) -> None:
    model, batch = tiny.llama(), tiny.batch(rng, lengths=(6, 6))
    expected = cross_entropy(*row_logits(model, batch))
    del batch["attention_mask"]
    assert LabelledLoss(model)(batch).tolist() == [pytest.approx(expected, rel=1e-5)]


@pytest.mark.parametrize("most", [1, 4, 7, 256])
def test_groups_and_chunks_with_an_adapted_head(
    most: int, monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    monkeypatch.setattr(labelled_loss, "MOST_LOGITS", most)
    model = wrap(tiny.llama(), LoraConfig(r=3, target_modules=["q_proj", "lm_head"]))
    for layer in adapter_layers(model).values():
        layer.lora_b.data.normal_(generator=rng)
    batch, loss = tiny.batch(rng, labelled=3), LabelledLoss(model)
    seeds, coeffs, directions = (
        torch.tensor([4, 5, 4]),
        torch.tensor([0.5, 0.0, -0.5]),
        adapter_of(model).directions,
    )
    with directions.use(seeds, coeffs):
        together = loss(batch, groups=3)
    assert together.shape == (3,) and together.dtype == torch.float32
    for group in range(3):
        with directions.use(seeds[group : group + 1], coeffs[group : group + 1]):
            expected = cross_entropy(*row_logits(model, batch))
        assert together[group].item() == pytest.approx(expected, rel=1e-4)
    assert len(set(together.tolist())) == 3


@pytest.mark.parametrize("config", ["llama", "gemma2-softcap", "cohere-scale"])
def test_candidates(config: str, rng: torch.Generator) -> None:
    model, batch = tiny.causal_lm(CONFIGS[config]), tiny.batch(rng, labelled=1)
    candidates = [17, 5, 40]
    classes = torch.tensor([2, 0, 1])
    batch["labels"][:, -1] = torch.tensor(candidates)[classes]
    logits, _ = row_logits(model, batch)
    logits = logits[:, candidates]
    loss = LabelledLoss(model, candidate_tokens=candidates)
    assert loss(batch).tolist() == [pytest.approx(cross_entropy(logits, classes), rel=1e-4)]
    torch.testing.assert_close(loss.logits(batch).double(), logits, rtol=1e-4, atol=1e-4)


def test_candidates_of_an_adapted_head(rng: torch.Generator) -> None:
    model = wrap(tiny.llama(), LoraConfig(r=3, target_modules=["lm_head"]))
    next(iter(adapter_layers(model).values())).lora_b.data.normal_(generator=rng)
    batch = tiny.batch(rng, labelled=1)
    expected = row_logits(model, batch)[0][:, [5, 40]]
    got = LabelledLoss(model, candidate_tokens=[5, 40]).logits(batch)
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


def test_logits_come_row_by_row(monkeypatch: pytest.MonkeyPatch, rng: torch.Generator) -> None:
    monkeypatch.setattr(labelled_loss, "MOST_LOGITS", 4)
    model, batch = tiny.llama(), tiny.batch(rng, labelled=2)
    expected, _ = row_logits(model, batch)
    got = LabelledLoss(model).logits(batch)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-4)


def test_half_precision_has_float32_losses(rng: torch.Generator) -> None:
    model, batch = tiny.llama().bfloat16(), tiny.batch(rng)
    losses = LabelledLoss(model)(batch)
    assert losses.dtype == torch.float32
    assert losses.item() == pytest.approx(cross_entropy(*row_logits(model, batch)), rel=0.02)


def test_only_what_is_needed_is_computed(monkeypatch: pytest.MonkeyPatch, rng: torch.Generator) -> None:
    monkeypatch.setattr(labelled_loss, "MOST_LOGITS", 5)
    model, batch = tiny.llama(), tiny.batch(rng, lengths=(6, 8), labelled=1)
    loss = LabelledLoss(model)
    decoder, head = [], []
    model.model.register_forward_hook(lambda _, args, out: decoder.append(out.last_hidden_state.shape))
    model.lm_head.register_forward_pre_hook(lambda _, args: head.append(args[0].shape[0]))
    loss(batch, groups=3)
    assert decoder == [(6, 7, 32)]  # one forward of all groups; the label word itself is not an input
    assert head == [3, 3]  # one label in each row of each group, at most five rows of logits at a time


def test_the_mode_of_every_module_survives(rng: torch.Generator) -> None:
    model = tiny.llama(attention_dropout=0.5)
    model.train()
    model.model.norm.eval()
    LabelledLoss(model)
    assert model.training and model.model.layers[0].training and not model.model.norm.training


def test_positions_with_a_compiled_decoder(rng: torch.Generator) -> None:
    model, batch = tiny.llama(), tiny.batch(rng)
    expected = LabelledLoss(model)(batch)
    model.model = torch.compile(model.model, backend="eager")
    torch.testing.assert_close(LabelledLoss(model)(batch), expected)


def test_unknown_heads_are_refused() -> None:
    class Shifted(LlamaForCausalLM):
        def forward(self, **inputs: Any) -> Any:
            output = super().forward(**inputs)
            output.logits = output.logits + 1.0
            return output

    with pytest.raises(ValueError, match="Shifted does not get its logits from its LM head in a known way"):
        LabelledLoss(Shifted(LlamaConfig(**KV)))


def test_models_that_are_no_causal_lms_are_refused() -> None:
    with pytest.raises(ValueError, match="model must be a causal LM of transformers, got Linear"):
        LabelledLoss(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="model must be a decoder with an LM head, got LlamaModel"):
        LabelledLoss(tiny.llama().model)
    seq2seq = T5ForConditionalGeneration(
        T5Config(vocab_size=16, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    with pytest.raises(ValueError, match="model must be a decoder with an LM head, got T5"):
        LabelledLoss(seq2seq)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"candidate_tokens": [3]}, r"candidate_tokens must be at least 2 different token ids, got \[3\]"),
        (
            {"candidate_tokens": [3, 3]},
            r"candidate_tokens must be at least 2 different token ids, got \[3, 3\]",
        ),
        ({"candidate_tokens": [3, 61]}, r"candidate_tokens must be in \[0, 61\), got \[3, 61\]"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelledLoss(tiny.llama(), **options)


def test_bad_batches(rng: torch.Generator) -> None:
    loss, batch = LabelledLoss(tiny.llama(), candidate_tokens=[3, 4]), tiny.batch(rng)
    with pytest.raises(ValueError, match=r"batch must hold input_ids and labels, got \['input_ids'\]"):
        loss({"input_ids": batch["input_ids"]})
    with pytest.raises(ValueError, match=r"labels must have the shape of input_ids, \[3, 9\], got \[2, 9\]"):
        loss({**batch, "labels": batch["labels"][:2]})
    with pytest.raises(ValueError, match="batch has no label after a token that is not padding"):
        loss({**batch, "labels": torch.full_like(batch["labels"], -100)})
    batch["labels"][:, -2:] = torch.tensor([4, 9])
    with pytest.raises(ValueError, match=r"labels must be among the candidate tokens \[3, 4\], got \[9\]"):
        loss(batch)


@pytest.mark.parametrize("way", ["hook", "pre_hook", "forward"])
def test_candidates_go_through_a_head_that_somebody_changed(way: str, rng: torch.Generator) -> None:
    model = tiny.llama()
    head, plain = model.lm_head, model.lm_head.forward
    if way == "hook":
        head.register_forward_hook(lambda module, args, out: 3 * out)
    elif way == "pre_hook":
        head.register_forward_pre_hook(lambda module, args: (3 * args[0],))
    else:
        head.forward = lambda x: 3 * plain(x)
    batch = tiny.batch(rng)
    got = LabelledLoss(model, candidate_tokens=[5, 9]).logits(batch)
    torch.testing.assert_close(got, LabelledLoss(model).logits(batch)[:, [5, 9]])
