"""What a batch may hold: masks, other columns, several texts in a row; and what is refused by name."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import tiny
import torch
from tiny import cross_entropy, row_logits
from torch import nn
from transformers import (
    BertGenerationConfig,
    DataCollatorWithFlattening,
    GPT2Config,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MambaConfig,
    PretrainedConfig,
    SiglipVisionConfig,
)

from mobizo_kernels import ZerothOrder, wrap
from mobizo_kernels.lora import adapter_layers, adapter_of
from mobizo_kernels.loss import LabelledLoss


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.float32, torch.bfloat16])
def test_dtypes_of_masks_and_tokens(dtype: torch.dtype, rng: torch.Generator) -> None:
    model, batch = tiny.llama(), tiny.batch(rng)
    expected = pytest.approx(cross_entropy(*row_logits(model, batch)), rel=1e-5)
    mask = batch["attention_mask"].to(dtype)
    for tokens in (torch.int64, torch.int32, torch.int16):
        ids, labels = batch["input_ids"].to(tokens), batch["labels"].to(tokens)
        got = LabelledLoss(model)({"input_ids": ids, "attention_mask": mask, "labels": labels})
        assert got.tolist() == [expected]


def test_labels_of_padding_do_not_count(rng: torch.Generator) -> None:
    model = tiny.llama()
    for side in ("left", "right"):
        batch = tiny.batch(rng, side=side)
        batch["labels"] = batch["input_ids"].clone()
        expected = cross_entropy(*row_logits(model, batch))
        assert LabelledLoss(model)(batch).tolist() == [pytest.approx(expected, rel=1e-5)]


def test_positions_that_say_nothing_new(rng: torch.Generator) -> None:
    """Counted from the mask, as by `generate`, or for a decoder that takes none."""
    batch = tiny.batch(rng)
    positions = (batch["attention_mask"].cumsum(dim=1) - 1).masked_fill(batch["attention_mask"] == 0, 1)
    for model in (tiny.llama(), tiny.causal_lm(MambaConfig(**STATE))):
        expected = LabelledLoss(model)(batch)
        assert LabelledLoss(model)({**batch, "position_ids": positions}).equal(expected)
    with pytest.raises(ValueError, match="MambaForCausalLM takes no position_ids but 0, 1, 2"):
        LabelledLoss(model)({**batch, "position_ids": positions + 1})


STATE: dict[str, Any] = {
    "vocab_size": tiny.VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def test_other_columns_are_left_out(rng: torch.Generator) -> None:
    model, batch = tiny.llama(), tiny.batch(rng)
    expected = LabelledLoss(model)(batch)
    others = {
        "length": torch.tensor([7, 5, 9]),
        "text": ["a", "b", "c"],
        "idx": 3,
        "pixel_values": torch.zeros(3, 3, 8, 8),
        "special_tokens_mask": torch.ones(3, 9),
        "loss_mask": None,
        "past_key_values": None,
    }
    assert LabelledLoss(model)({**others, **batch}).equal(expected)
    zo = ZerothOrder(wrap(model, peft.LoraConfig(target_modules=["q_proj"])))
    assert zo.step({**others, **batch}).loss == pytest.approx(expected.item(), rel=1e-2)


def test_columns_that_the_decoder_takes(rng: torch.Generator) -> None:
    """Token types move with their tokens."""
    model = tiny.causal_lm(GPT2Config(vocab_size=tiny.VOCABULARY, n_embd=32, n_layer=2, n_head=4))
    batch = tiny.batch(rng)
    batch["token_type_ids"] = torch.randint(3, tiny.VOCABULARY, batch["input_ids"].shape, generator=rng)
    expected, targets = [], []
    for row, mask in enumerate(batch["attention_mask"].bool()):
        of_row = {name: tensor[row, mask][None] for name, tensor in batch.items()}
        with torch.no_grad():
            logits = model(input_ids=of_row["input_ids"], token_type_ids=of_row["token_type_ids"]).logits
        expected.append(logits[0, -3:-1].double())
        targets.append(of_row["labels"][0, -2:])
    wanted = cross_entropy(torch.cat(expected), torch.cat(targets))
    assert LabelledLoss(model)(batch).tolist() == [pytest.approx(wanted, rel=1e-5)]
    with pytest.raises(
        ValueError, match=r"token_type_ids must be one value for each token, \[3, 9\], got \[3\]"
    ):
        LabelledLoss(model)({**batch, "token_type_ids": torch.zeros(3)})


def test_pictures_are_not_cut_to_the_tokens(rng: torch.Generator) -> None:
    vision = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=8,
        patch_size=4,
    )  # fmt: skip
    text = LlamaConfig(**tiny.SIZES)
    model: Any = LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=5)
    ).eval()
    batch = tiny.batch(rng)
    with pytest.raises(ValueError, match=r"pixel_values must be one value for each token, \[3, 9\], got"):
        LabelledLoss(model)({**batch, "pixel_values": torch.zeros(3, 3, 8, 8)})


PACKED: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**tiny.SIZES),
    "llama-eager": LlamaConfig(**tiny.SIZES, attn_implementation="eager"),
    "gpt2": GPT2Config(vocab_size=tiny.VOCABULARY, n_embd=32, n_layer=2, n_head=4),
}


def packed(rng: torch.Generator) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Three texts in one row, as transformers packs them, and the same texts padded."""
    batch = tiny.batch(rng, lengths=(8, 5, 7))
    texts = []
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        texts.append({"input_ids": ids[mask == 1].tolist(), "labels": labels[mask == 1].tolist()})
    return dict(DataCollatorWithFlattening(return_flash_attn_kwargs=True)(texts)), batch


@pytest.mark.parametrize("layers", [None, [1]])
@pytest.mark.parametrize("name", PACKED)
def test_packed_rows(name: str, layers: list[int] | None, rng: torch.Generator) -> None:
    model = tiny.causal_lm(copy.deepcopy(PACKED[name]))
    targets = ["c_attn"] if name == "gpt2" else ["q_proj"]
    wrap(model, peft.LoraConfig(r=3, target_modules=targets, layers_to_transform=layers))
    for layer in adapter_layers(model).values():
        layer.lora_b.data.copy_(torch.randn(layer.lora_b.shape, generator=rng))
    batch, texts = packed(rng)
    seeds, coeffs, directions = torch.tensor([4, 5, 6]), torch.full((3,), 0.2), adapter_of(model).directions
    with directions.use(seeds, coeffs):
        got = LabelledLoss(model)(batch, 3)
    for group in range(3):
        with directions.use(seeds[group : group + 1], coeffs[group : group + 1]):
            expected = cross_entropy(*row_logits(model, texts))
        assert got[group].item() == pytest.approx(expected, rel=2e-5)


def test_models_that_cannot_tell_texts_apart(rng: torch.Generator) -> None:
    batch, _ = packed(rng)
    with pytest.raises(ValueError, match="MambaForCausalLM takes no position_ids"):
        LabelledLoss(tiny.causal_lm(MambaConfig(**STATE)))(batch)
    # It takes positions, but looks for no texts in them.
    model = tiny.causal_lm(BertGenerationConfig(**tiny.SIZES, is_decoder=True))
    with pytest.raises(ValueError, match="BertGenerationDecoder does not tell several texts in a row apart"):
        LabelledLoss(model)(batch)


@pytest.mark.parametrize("name", ["cu_seq_lens_q", "cu_seq_lens_k", "seq_idx"])
def test_packing_without_positions(name: str, rng: torch.Generator) -> None:
    batch, _ = packed(rng)
    batch["seq_idx"] = torch.arange(3).repeat_interleave(torch.tensor([8, 5, 7]))[None]
    loss = LabelledLoss(tiny.llama())
    with pytest.raises(ValueError, match=f"batch: {name} tells of several texts in a row"):
        loss({key: batch[key] for key in ("input_ids", "labels", name)})


def test_what_is_refused(rng: torch.Generator) -> None:
    loss, batch = LabelledLoss(tiny.llama()), tiny.batch(rng)
    ids, labels, mask = batch["input_ids"], batch["labels"], batch["attention_mask"]
    four = torch.zeros(3, 1, 9, 9)
    texts = torch.tensor([[1] * 4 + [2] * 5] * 3)
    bad: list[tuple[dict[str, Any], str]] = [
        ({"attention_mask": texts}, "attention_mask must be 1 at tokens and 0 at padding, got 2"),
        ({"attention_mask": mask * 255}, "attention_mask must be 1 at tokens and 0 at padding, got 255"),
        (
            {"attention_mask": (1.0 - mask) * torch.finfo(torch.float32).min},
            "attention_mask must be 1 at tokens and 0 at padding, got -3",
        ),
        ({"attention_mask": mask / 0}, "attention_mask must be 1 at tokens"),
        (
            {"attention_mask": four},
            r"attention_mask must have the shape of input_ids, \[3, 9\], got \[3, 1, 9, 9\]",
        ),
        ({"attention_mask": mask * 0}, "batch has no label after a token that is not padding"),
        ({"input_ids": ids[0]}, r"input_ids must be \[B, T\], got \[9\]"),
        ({"input_ids": ids.tolist()}, r"input_ids must be a tensor \[B, T\], got list"),
        ({"input_ids": ids.float()}, "input_ids must be int64, got torch.float32"),
        ({"labels": labels.float()}, "labels must be int64, got torch.float32"),
        ({"labels": labels != -100}, "labels must be int64, got torch.bool"),
        (
            {"labels": labels.clamp(max=tiny.VOCABULARY) + 60},
            r"labels must be in \[0, 61\), or -100 for none",
        ),
        ({"labels": labels.clamp(min=-1)}, r"labels must be in \[0, 61\), or -100 for none, got -1"),
        ({"input_ids": ids + 61 * mask}, r"input_ids must be in \[0, 61\), got"),
        ({"inputs_embeds": torch.zeros(3, 9, 32)}, "inputs_embeds must be one value for each token"),
    ]
    for change, message in bad:
        with pytest.raises(ValueError, match=message):
            loss({**batch, **change})
    loss(batch)


def test_int8_that_mixes_rows_is_named() -> None:
    class Linear8bitLt(nn.Linear):
        """A linear as that of bitsandbytes: outliers are looked for in all rows at once."""

        def __init__(self, threshold: float) -> None:
            super().__init__(32, 32, bias=False)
            self.state = type("MatmulLtState", (), {"threshold": threshold})()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.state.threshold:
                x = x * (1 + x.abs().amax())
            return super().forward(x)

    model = tiny.llama()
    model.model.layers[1].self_attn.q_proj = Linear8bitLt(6.0)
    with pytest.raises(ValueError, match=r"layers.1.self_attn.q_proj is a linear of LLM.int8 .*_threshold=0"):
        LabelledLoss(model)
    model.model.layers[1].self_attn.q_proj = Linear8bitLt(0.0)
    LabelledLoss(model)


def test_what_the_self_check_finds() -> None:
    class Beside(nn.Module):
        """A sum over the rows of a batch, a random number, a shape that it does not take."""

        def __init__(self, inner: nn.Module, kind: str) -> None:
            super().__init__()
            self.inner, self.kind = inner, kind

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.inner(x)
            if self.kind == "rows":
                return out + out.mean(dim=0, keepdim=True)
            if self.kind == "random":
                return out + torch.randn(())
            if self.kind == "nan":
                return out / 0 * 0
            raise IndexError("too odd")

    for kind, message in (
        ("rows", "logits that depend on later tokens or on other rows"),
        ("random", "other logits for the same tokens each time"),
        ("nan", "logits that are not finite"),
        ("raises", r"makes no logits of \[3, 6\] tokens: too odd"),
    ):
        model = tiny.llama()
        model.model.layers[0].mlp = Beside(model.model.layers[0].mlp, kind)
        with pytest.raises(ValueError, match=f"LlamaForCausalLM (has )?{message}"):
            LabelledLoss(model)


def test_one_row_of_positions_for_all(rng: torch.Generator) -> None:
    model, batch = tiny.llama(), tiny.batch(rng, lengths=(9, 9, 9))
    positions = torch.arange(batch["input_ids"].shape[1])[None] + 3
    every = {**batch, "position_ids": positions.expand_as(batch["input_ids"])}
    one = LabelledLoss(model)({**batch, "position_ids": positions})
    assert one.equal(LabelledLoss(model)(every))
