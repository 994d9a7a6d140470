"""Every kind of causal LM: rows padded anywhere have the loss of the rows alone, in float64, or the model is
refused by name. Adapted in the last layer, or from an invocation on, so do several groups of rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import peft
import pytest
import tiny
import torch
import transformers
from tiny import cross_entropy, row_logits
from torch import nn
from transformers.pytorch_utils import Conv1D

from mobizo_kernels import wrap
from mobizo_kernels.lora import adapter_layers, adapter_of
from mobizo_kernels.loss import LabelledLoss

INVOCATION = [7, 8]
SIZES = {**tiny.SIZES, "num_key_value_heads": 2, "head_dim": 8}
SIZES_GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
DECODER: dict[str, Any] = {
    "d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
    "decoder_start_token_id": 1,
}  # fmt: skip
MAMBA: dict[str, Any] = {
    "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 4
}  # fmt: skip
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT: dict[str, Any] = {
    "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8
}  # fmt: skip
DELTA: dict[str, Any] = {
    "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
PLAIN = {**tiny.SIZES}

SUPPORTED: dict[str, dict[str, Any]] = {
    # positions that are learned, or counted from the column
    "Bart": DECODER,
    "MBart": DECODER,
    "Marian": DECODER,
    "Blenderbot": DECODER,
    "Pegasus": DECODER,
    "BigBirdPegasus": DECODER,
    "TrOCR": DECODER,
    "Whisper": DECODER,
    "GPT2": SIZES_GPT,
    "GPTBigCode": SIZES_GPT,
    "OpenAIGPT": SIZES_GPT,
    "CTRL": {**SIZES_GPT, "dff": 48},
    "GPTNeo": {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48, "window_size": 4,
        "attention_types": [[["global", "local"], 1]],
    },
    "XGLM": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
    "BioGpt": PLAIN,
    "OPT": {**PLAIN, "ffn_dim": 48, "word_embed_proj_dim": 16},
    "BertGeneration": {**PLAIN, "is_decoder": True},
    # biases that depend on the distance
    "Bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "Mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "expansion_ratio": 2},
    "Falcon": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True},
    # rotations
    "Llama": SIZES,
    "GPTJ": {**SIZES_GPT, "rotary_dim": 4},
    "CodeGen": {**SIZES_GPT, "rotary_dim": 4},
    "GPTNeoX": PLAIN,
    "Phi": PLAIN,
    "Phi3": PLAIN,
    "StableLm": {**PLAIN, "num_key_value_heads": 2},
    "Gemma2": {**SIZES, "sliding_window": 4, "attn_logit_softcapping": 2.0, "query_pre_attn_scalar": 8},
    "VaultGemma": {**SIZES, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "Mistral": {**SIZES, "sliding_window": 4},
    "GraniteSWA": {**SIZES, "sliding_window": 4},
    "DiffLlama": SIZES,
    "Doge": SIZES,
    "NanoChat": SIZES,
    # experts and latent attention
    "Mixtral": {**SIZES, "num_local_experts": 4},
    "Qwen2Moe": {**PLAIN, "num_key_value_heads": 2, **EXPERTS, "shared_expert_intermediate_size": 16},
    "GptOss": {**SIZES, "num_local_experts": 4, "sliding_window": 4},
    "DeepseekV3": {**PLAIN, **LATENT, "n_routed_experts": 4, "n_group": 1, "topk_group": 1},
    "HunYuanDenseV1": SIZES,
    # states
    "Rwkv": {"hidden_size": 32, "num_hidden_layers": 2, "attention_hidden_size": 32, "intermediate_size": 48},
    "Mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8},
    "Mamba2": {
        "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "num_heads": 4, "head_dim": 16,
        "chunk_size": 4, "n_groups": 1,
    },
    "xLSTM": {"hidden_size": 32, "num_heads": 4, "num_hidden_layers": 2, "num_blocks": 2},
    "RecurrentGemma": {**SIZES, "lru_width": 32, "block_types": ["recurrent", "attention"]},
    "Bamba": {**PLAIN, **MAMBA, "attn_layer_indices": [1], "num_key_value_heads": 2},
    "FalconH1": {**SIZES, **MAMBA, "mamba_d_ssm": 64},
    "Qwen3Next": {**SIZES, **DELTA, **EXPERTS, "shared_expert_intermediate_size": 16},
    "OlmoHybrid": {**SIZES, **DELTA},
    "Lfm2": {**PLAIN, "num_key_value_heads": 2, "layer_types": ["conv", "full_attention"]},
    "NemotronH": {
        **SIZES, "layers_block_type": ["mamba", "attention"], "mamba_num_heads": 4, "mamba_head_dim": 16,
        "ssm_state_size": 8, "n_groups": 1, "chunk_size": 4,
    },
}  # fmt: skip

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "Bert": ({**PLAIN, "is_decoder": True}, "does not get its logits from its LM head in a known way"),
    "ModernBertDecoder": (PLAIN, "does not get its logits from its LM head in a known way"),
    "RemBert": ({**PLAIN, "is_decoder": True}, "does not get its logits from its LM head in a known way"),
    "BertGeneration": ({**PLAIN, "is_decoder": False}, "logits that depend on later tokens"),
    "XLM": ({"emb_dim": 32, "n_layers": 2, "n_heads": 4}, "logits that depend on later tokens"),
    "XLNet": (
        {"d_model": 32, "d_inner": 48, "n_layer": 2, "n_head": 4, "mem_len": 0},
        "logits that depend on later tokens",
    ),
    "Reformer": (
        {"hidden_size": 32, "axial_pos_embds_dim": [16, 16], "axial_pos_shape": [8, 8], "is_decoder": True},
        "the attention of ReformerModelWithLMHead hashes at random",
    ),
}


def config(name: str, options: dict[str, Any]) -> Any:
    common = {"vocab_size": tiny.VOCABULARY, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return getattr(transformers, f"{name}Config")(**{**common, **options})


def padded(rng: torch.Generator, tokens: Callable[[int], torch.Tensor], labelled: int) -> Any:
    """A whole row, one padded on the left, one on the right, one with holes; and the pads are no tokens."""
    lengths, width = (9, 6, 7, 5), 9
    batch = {"input_ids": torch.full((4, width), -1), "attention_mask": torch.zeros(4, width)}
    batch["labels"] = torch.full((4, width), -100)
    for row, length in enumerate(lengths):
        ids = tokens(length)
        columns = torch.arange(length)
        if row == 1:
            columns = columns + width - length
        if row == 3:
            columns = torch.tensor([1, 3, 4, 7, 8])[:length]
        batch["input_ids"][row, columns] = ids
        batch["attention_mask"][row, columns] = 1
        batch["labels"][row, columns[-labelled:]] = ids[-labelled:]
    return batch


@pytest.mark.parametrize("name", SUPPORTED)
def test_padding_changes_nothing(name: str, rng: torch.Generator) -> None:
    model = tiny.causal_lm(config(name, SUPPORTED[name]))
    batch = padded(rng, lambda n: torch.randint(3, tiny.VOCABULARY, (n,), generator=rng), 2)
    expected = cross_entropy(*row_logits(model, batch))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert LabelledLoss(model)(batch).tolist() == [pytest.approx(expected, rel=2e-5)]
    for row in range(4):  # a batch of one
        one = {key: tensor[row : row + 1] for key, tensor in batch.items()}
        expected = cross_entropy(*row_logits(model, one))
        assert LabelledLoss(model)(one).tolist() == [pytest.approx(expected, rel=2e-5)]


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    options, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        LabelledLoss(tiny.causal_lm(config(name, options)))


def linears(model: nn.Module, layers: list[str]) -> list[str]:
    """The linears of some layers that see all tokens, and that PEFT adapts in every architecture."""
    not_everywhere = {"out_proj", "gate_proj", "up_proj", "down_proj"}
    not_all_tokens = {"experts", "shared_expert_gate", "router", "gate"}
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D))
        and any(f".{layer}." in path for layer in layers)
        and not (not_everywhere | not_all_tokens) & set(path.split("."))
    ]


@pytest.mark.parametrize("adapters", ["last layer", "after the invocation", "both"])
@pytest.mark.parametrize("name", SUPPORTED)
@pytest.mark.filterwarnings("ignore:every group runs over all tokens and layers")
def test_groups_of_rows(name: str, adapters: str, rng: torch.Generator) -> None:
    model = tiny.causal_lm(config(name, SUPPORTED[name]))
    invocation = None if adapters == "last layer" else INVOCATION
    paths = linears(model, ["0", "1"] if adapters == "after the invocation" else ["1"])
    wrap(model, peft.LoraConfig(r=3, target_modules=paths, alora_invocation_tokens=invocation))
    for layer in adapter_layers(model).values():
        layer.lora_b.data.copy_(0.5 * torch.randn(layer.lora_b.shape, generator=rng))

    def tokens(length: int) -> torch.Tensor:
        ids = torch.randint(9, tiny.VOCABULARY, (length,), generator=rng)
        ids[-3:-1] = torch.tensor(INVOCATION)
        return ids

    batch = padded(rng, tokens, 1)
    seeds, coeffs, directions = torch.tensor([4, 5]), torch.tensor([0.3, -0.3]), adapter_of(model).directions
    with directions.use(seeds, coeffs):
        got = LabelledLoss(model)(batch, 2)
    expected = []
    for group in range(2):
        with directions.use(seeds[group : group + 1], coeffs[group : group + 1]):
            expected.append(cross_entropy(*row_logits(model, batch)))
    assert got.tolist() == pytest.approx(expected, rel=5e-5)
    assert abs(expected[0] - expected[1]) > 1e-4
