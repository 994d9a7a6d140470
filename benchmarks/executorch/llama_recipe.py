"""The program that ExecuTorch's own Llama recipe makes of a Llama of transformers."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

_NAMES = {
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
    "input_layernorm": "attention_norm",
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
}
# What is nearest to each of our quantizations; the recipe has none that is our "int8".
OPTIONS = {
    "none": [],
    "int8-dynamic": ["--pt2e_quantize", "xnnpack_dynamic", "--embedding-quantize", "8,0"],
    "int4": ["--quantization_mode", "8da4w", "--group_size", "32", "--embedding-quantize", "8,0"],
}


def export_recipe(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, *, context: int, quantization: str
) -> None:
    """Write it to `path`: with a key-value cache, the fused attention that updates it, and XNNPACK for all
    that it takes, as the recipe's page has it for CPUs.

    Args:
        model: with Llama's names of weights, in float32.
        tokenizer: gives the token that ends a text.
        path: of the .pte.
        context: most tokens.
        quantization: a key of `OPTIONS`.
    """
    c = model.config
    params = {
        "dim": c.hidden_size, "hidden_dim": c.intermediate_size, "multiple_of": 1,
        "n_heads": c.num_attention_heads, "n_kv_heads": c.num_key_value_heads,
        "n_layers": c.num_hidden_layers, "norm_eps": c.rms_norm_eps,
        "rope_theta": c.rope_parameters["rope_theta"], "use_scaled_rope": False, "vocab_size": c.vocab_size,
    }  # fmt: skip
    ends = {"get_bos_id": tokenizer.bos_token_id, "get_eos_ids": [tokenizer.eos_token_id]}
    with tempfile.TemporaryDirectory() as folder:
        weights, shape = Path(folder, "weights.pth"), Path(folder, "params.json")
        torch.save(_meta_names(model), weights)
        shape.write_text(json.dumps(params))
        command = [
            sys.executable, "-m", "executorch.examples.models.llama.export_llama", "--model", "smollm2",
            "--checkpoint", str(weights), "--params", str(shape), "--metadata", json.dumps(ends), "--xnnpack",
            "--xnnpack-extended-ops", "--use_kv_cache", "--use_sdpa_with_kv_cache", "--max_seq_length",
            str(context), "--max_context_length", str(context), "--output_name", str(path.resolve()),
            *OPTIONS[quantization],
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    if done.returncode != 0 or not path.is_file():
        raise SystemExit(f"the recipe failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def _meta_names(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights by Meta's names, queries and keys in the order of Meta's rotary embedding."""
    heads = {"q_proj": model.config.num_attention_heads, "k_proj": model.config.num_key_value_heads}
    found = {}
    for name, value in model.state_dict().items():
        for ours, theirs in _NAMES.items():
            name = name.replace(f"{ours}.weight", f"{theirs}.weight")
        for linear, count in heads.items():
            if name.endswith(f"attention.w{linear[0]}.weight"):
                halves = value.view(count, 2, -1, value.shape[1])
                value = halves.transpose(1, 2).reshape(value.shape)
        found[name.removeprefix("model.")] = value
    return found
