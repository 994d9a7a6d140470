"""PEFT loads the adapters of every architecture to the same logits, or they are refused at once."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel
from torch import nn
from transformers import CONFIG_MAPPING

from mobizo_kernels.lora import adapter_layers, is_wrapped, save_adapter, wrap

# Sizes by the names that architectures have for them.
SIZES: dict[str, Any] = {
    **tiny.SIZES,
    "num_key_value_heads": 2, "head_dim": 8, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
    "n_inner": 48, "d_model": 32, "ffn_dim": 48, "word_embed_proj_dim": 32, "decoder_layers": 2,
    "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "encoder_layers": 2, "encoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "num_layers": 2, "num_heads": 4, "ffn_hidden_size": 48, "n_heads": 4,
    "n_layers": 2, "rotary_dim": 8, "decoder_start_token_id": 2, "embed_dim": 32, "attention_hidden_size": 32,
    "state_size": 8, "moe_intermediate_size": 16, "n_routed_experts": 4, "num_experts": 4,
    "num_local_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1,
    "first_k_dense_replace": 1, "moe_k": 2,
    "shared_expert_intermediate_size": 16, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8, "v_head_dim": 8, "moe_num_experts": 4,
}  # fmt: skip
OWN: dict[str, dict[str, Any]] = {
    "deepseek_v3": {"num_key_value_heads": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
}
FAMILIES = [
    "bart", "bloom", "cohere2", "deepseek_v3", "falcon", "gemma", "gemma2", "gemma3_text", "glm4", "gpt2",
    "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "granite", "jamba", "lfm2", "llama",
    "llama4_text", "mistral", "mixtral", "mpt", "olmo2", "opt", "phi", "phi3", "phimoe",
    "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "rwkv", "smollm3", "stablelm", "starcoder2", "xglm",
]  # fmt: skip
MORE = [
    "apertus", "arcee", "aria_text", "bailing_hybrid", "bert", "bert-generation", "big_bird",
    "bigbird_pegasus", "biogpt", "bitnet", "blenderbot", "blenderbot-small", "camembert",
    "codegen", "cohere", "cohere2_moe",
    "cpmant", "ctrl", "cwm", "data2vec-text", "diffllama", "doge", "electra", "ernie", "ernie4_5", "exaone4",
    "flex_olmo", "glm", "gpt_neox_japanese", "granitemoe", "granitemoeshared", "helium", "hunyuan_v1_dense",
    "jais2", "jetmoe", "marian", "mbart", "megatron-bert", "minimax", "minimax_m2", "ministral", "ministral3",
    "modernbert-decoder", "moshi", "mvp", "nanochat", "nemotron", "olmo", "olmo3", "olmo_hybrid", "olmoe",
    "openai-gpt", "pegasus", "persimmon", "plbart", "qwen3_5_text", "qwen3_5_moe_text", "recurrent_gemma",
    "rembert", "roberta", "roberta-prelayernorm", "roformer", "seed_oss", "trocr", "vaultgemma", "whisper",
    "xlm-roberta", "xlm-roberta-xl",
]  # fmt: skip
# What "all-linear" is refused for, by the words of the refusal, and linears beside it.
REFUSED: dict[str, tuple[str, list[str]]] = {
    "llama4_text": (r"router \(Llama4Router\), not a linear", ["q_proj", "o_proj"]),
    "phimoe": (r"router \(PhimoeTopKRouter\), not a linear", ["q_proj", "o_proj"]),
    **dict.fromkeys(
        ["afmoe", "deepseek_v3", "ernie4_5_moe", "exaone_moe", "glm4_moe", "hunyuan_v1_moe", "solar_open"],
        (r"would get no adapter \(and \d+ more\); leave out .*gate_proj", ["o_proj"]),
    ),
    "qwen3_next": (r"would get no adapter .*leave out .*gate_proj", ["in_proj_qkvz"]),
    **dict.fromkeys(
        ["falcon_h1", "falcon_mamba", "mamba", "nemotron_h"],
        ("'(out_proj|conv1d)' is incompatible with Mamba", ["in_proj"]),
    ),
}  # fmt: skip


def tiny_model(name: str) -> Any:
    if name not in CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {name}")
    kind = CONFIG_MAPPING[name]
    fields = getattr(kind, "__dataclass_fields__", ())
    known = {*inspect.signature(kind).parameters, *kind.attribute_map, *fields}
    sizes = {**{key: value for key, value in SIZES.items() if key in known}, **OWN.get(name, {})}
    return tiny.causal_lm(kind(**sizes))


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.arange(3, 15).view(2, 6), use_cache=False).logits


def each(names: list[str]) -> list[Any]:
    return [pytest.param(name, marks=() if name in FAMILIES else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", each([*FAMILIES, *MORE, *sorted(REFUSED.keys() - set(FAMILIES))]))
def test_peft_computes_the_same(name: str, tmp_path: Path, rng: torch.Generator) -> None:
    model = tiny_model(name)
    refusal, targets = REFUSED.get(name, (None, "all-linear"))
    if refusal is not None:
        with pytest.raises(ValueError, match=refusal):
            wrap(model, LoraConfig(r=2, target_modules="all-linear"))
        assert not is_wrapped(model)
    before = logits(model)
    wrap(model, LoraConfig(r=2, lora_alpha=6, target_modules=targets))
    for layer in adapter_layers(model).values():
        layer.lora_b.data.normal_(generator=rng)
    save_adapter(model, tmp_path)
    theirs = PeftModel.from_pretrained(tiny_model(name), str(tmp_path)).eval()
    expected = logits(theirs)
    largest = float(expected.abs().max())
    assert float((expected - before).abs().max()) > 0.01 * largest
    torch.testing.assert_close(logits(model), expected, rtol=0, atol=1e-4 * largest)
