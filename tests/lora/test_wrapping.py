"""wrap and unwrap, and the adapted linear: against PEFT, against one group at a time, traced and in place."""

from __future__ import annotations

import copy
from typing import Any

import peft
import pytest
import tiny
import torch
from helpers import DISTRIBUTIONS, assert_same_bits
from peft import LoraConfig
from torch import nn
from transformers import GPT2Config, MixtralConfig

from mobizo_kernels import reference
from mobizo_kernels.lora import (
    Directions,
    MPLoRALinear,
    adapter_layers,
    adapter_of,
    is_wrapped,
    unwrap,
    wrap,
)
from mobizo_kernels.ops import parameter_stream

QV: dict[str, Any] = {"target_modules": ["q_proj", "v_proj"]}


def randomize(model: nn.Module, rng: torch.Generator) -> None:
    """A trained-looking B in every adapter."""
    for layer in adapter_layers(model).values():
        layer.lora_b.data.normal_(generator=rng)


def tokens(rng: torch.Generator, rows: int = 6) -> torch.Tensor:
    return torch.randint(3, tiny.VOCABULARY, (rows, 5), generator=rng)


def peft_twin(base: Any, config: LoraConfig, wrapped: nn.Module) -> Any:
    """PEFT's own model with the A and B of a wrapped one."""
    twin: Any = peft.get_peft_model(base, copy.deepcopy(config)).eval()
    layers = {name: m for name, m in twin.base_model.model.named_modules() if hasattr(m, "lora_A")}
    ours = adapter_layers(wrapped)
    assert list(layers) == list(ours)
    for name, layer in ours.items():
        layers[name].lora_A["default"].weight.data.copy_(layer.lora_a)
        layers[name].lora_B["default"].weight.data.copy_(layer.lora_b)
    return twin


CONFIGS: dict[str, dict[str, Any]] = {
    "suffixes": {"r": 3, "lora_alpha": 7, **QV},
    "regex": {"r": 3, "target_modules": r".*\.mlp\.(up|down)_proj"},
    "all-linear": {"r": 2, "target_modules": "all-linear"},
    "default-targets": {"r": 2},
    "layers": {"r": 2, "layers_to_transform": [1], **QV},
    "layers-pattern": {"r": 2, "layers_to_transform": 0, "layers_pattern": "layers", **QV},
    "exclude": {"r": 2, "exclude_modules": ["1.self_attn.q_proj"], **QV},
    "patterns": {
        "r": 2,
        "rank_pattern": {"q_proj": 5, "layers.1.self_attn.v_proj": 1},
        "alpha_pattern": {"v_proj": 3},
        **QV,
    },
    "rslora": {"r": 5, "lora_alpha": 16, "use_rslora": True, **QV},
    "head": {"r": 2, "target_modules": ["lm_head"]},
}


@pytest.mark.parametrize("options", CONFIGS.values(), ids=CONFIGS)
def test_forward_is_that_of_peft(options: dict[str, Any], rng: torch.Generator) -> None:
    config, base = LoraConfig(**options), tiny.llama()
    model = wrap(copy.deepcopy(base), config)
    randomize(model, rng)
    twin, ids = peft_twin(base, config, model), tokens(rng)
    torch.testing.assert_close(model(ids).logits, twin(ids).logits, rtol=1e-5, atol=1e-4)


def test_conv1d_forward_is_that_of_peft(rng: torch.Generator) -> None:
    sizes: dict[str, Any] = {
        "vocab_size": tiny.VOCABULARY,
        "n_embd": 24,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 32,
    }
    config = LoraConfig(r=3, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    base = tiny.causal_lm(GPT2Config(**sizes))
    model = wrap(copy.deepcopy(base), config)
    randomize(model, rng)
    twin, ids = peft_twin(base, config, model), tokens(rng)
    expected = twin(ids).logits
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(unwrap(model, merge=True)(ids).logits, expected, rtol=1e-5, atol=1e-4)


def test_lower_precision_base_keeps_a_float32_adapter(rng: torch.Generator) -> None:
    config, base = LoraConfig(r=3, **QV), tiny.llama().bfloat16()
    model = wrap(copy.deepcopy(base), config)
    randomize(model, rng)
    layer = next(iter(adapter_layers(model).values()))
    assert layer.lora_a.dtype == layer.lora_b.dtype == torch.float32
    x = torch.randn(2, 3, 32, generator=rng).bfloat16()
    assert layer(x).dtype == torch.bfloat16
    twin, ids = peft_twin(base, config, model), tokens(rng)
    logits = model(ids).logits
    torch.testing.assert_close(logits, twin(ids).logits, rtol=0.05, atol=0.02 * float(logits.abs().max()))


def test_autocast(rng: torch.Generator) -> None:
    model = wrap(tiny.llama(), LoraConfig(r=3, **QV))
    randomize(model, rng)
    layer, x = next(iter(adapter_layers(model).values())), torch.randn(2, 3, 32, generator=rng)
    expected = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = layer(x)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))


def test_wrapping_changes_nothing_yet(rng: torch.Generator) -> None:
    base, ids = tiny.llama(), tokens(rng)
    expected = base(ids).logits
    config = LoraConfig(r=3, target_modules="all-linear")
    model = wrap(base, config)
    assert model is base and is_wrapped(model)
    assert config.target_modules == "all-linear"
    assert_same_bits(model(ids).logits, expected)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_is_kaiming_uniform_and_seeded_per_linear() -> None:
    both = adapter_layers(wrap(tiny.llama(), LoraConfig(r=64, **QV), seed=5))
    alone = adapter_layers(wrap(tiny.llama(), LoraConfig(r=64, target_modules=["v_proj"]), seed=5))
    other = adapter_layers(wrap(tiny.llama(), LoraConfig(r=64, **QV), seed=6))
    for name, layer in alone.items():
        assert_same_bits(layer.lora_a, both[name].lora_a)
        assert not torch.equal(layer.lora_a, other[name].lora_a)
    values = torch.stack([layer.lora_a for layer in both.values()])
    bound = 32**-0.5
    assert float(values.abs().max()) <= bound
    assert abs(float(values.mean())) < 4 * bound / (3 * values.numel()) ** 0.5
    assert float(values.var()) == pytest.approx(bound**2 / 3, rel=0.05)
    assert not torch.equal(values[0], values[1])


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_groups_are_separately_perturbed_models(distribution: str, rng: torch.Generator) -> None:
    model = wrap(tiny.llama(), LoraConfig(r=3, target_modules="all-linear"))
    randomize(model, rng)
    ids, seeds = tokens(rng, rows=2), torch.tensor([5, -9, 5])
    coeffs = torch.tensor([0.5, 0.25, -0.5])
    with adapter_of(model).directions.use(seeds, coeffs, distribution):
        together = model(ids.repeat(3, 1)).logits
    for group in range(3):
        alone = copy.deepcopy(model)
        for name, layer in adapter_layers(alone).items():
            stream = parameter_stream(f"{name}.weight")
            assert layer.stream == stream
            one = slice(group, group + 1)
            layer.lora_b.data = reference.perturb(
                layer.lora_b, seeds[one], coeffs[one], stream, 1.0, distribution
            )
        expected = alone(ids).logits
        assert float((expected - model(ids).logits).abs().max()) > 0.1
        torch.testing.assert_close(together[2 * group : 2 * group + 2], expected, rtol=1e-4, atol=1e-3)


def test_directions_return_to_rest_also_after_an_error(rng: torch.Generator) -> None:
    model = wrap(tiny.llama(), LoraConfig(r=3, **QV))
    directions, ids = adapter_of(model).directions, tokens(rng, rows=4)
    expected = model(ids).logits
    with (
        pytest.raises(RuntimeError, match="must be divisible by the number of groups"),
        directions.use(torch.arange(3), torch.ones(3)),
    ):
        model(ids)
    assert directions.seeds.tolist() == [0] and directions.coeffs.tolist() == [0.0]
    assert_same_bits(model(ids).logits, expected)


def test_model_to_keeps_the_coefficients_float32() -> None:
    model = wrap(tiny.llama(), LoraConfig(r=3, **QV)).to(torch.bfloat16)
    directions = adapter_of(model).directions
    assert directions.coeffs.dtype == torch.float32 and directions.seeds.dtype == torch.int64
    layer = next(iter(adapter_layers(model).values()))
    assert layer.directions is directions
    assert layer(torch.ones(1, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_directions_are_not_in_the_state_dict() -> None:
    keys = wrap(tiny.llama(), LoraConfig(r=3, **QV)).state_dict()
    assert any(key.endswith("q_proj.lora_b") for key in keys)
    assert not any("seeds" in key or "coeffs" in key for key in keys)


def test_unwrap_restores_the_very_model(rng: torch.Generator) -> None:
    model, ids = tiny.llama(), tokens(rng)
    model.lm_head.weight.requires_grad_(False)
    modules, trainable = (
        dict(model.named_modules()),
        {n for n, p in model.named_parameters() if p.requires_grad},
    )
    expected = model(ids).logits
    wrap(model, LoraConfig(r=3, **QV))
    randomize(model, rng)
    assert unwrap(model) is model
    assert not is_wrapped(model)
    assert all(module is modules[name] for name, module in model.named_modules())
    assert {n for n, p in model.named_parameters() if p.requires_grad} == trainable
    assert_same_bits(model(ids).logits, expected)
    wrap(model, LoraConfig(r=3, **QV))


def test_merge(rng: torch.Generator) -> None:
    model, ids = wrap(tiny.llama(), LoraConfig(r=3, lora_alpha=5, **QV)), tokens(rng)
    randomize(model, rng)
    expected = model(ids).logits
    merged = unwrap(model, merge=True)
    assert not any(isinstance(module, MPLoRALinear) for module in merged.modules())
    with pytest.warns(
        UserWarning, match="LlamaForCausalLM has an adapter merged into it: an adapter of it fits"
    ):
        unwrap(wrap(merged, LoraConfig(r=3, **QV)))
    torch.testing.assert_close(merged(ids).logits, expected, rtol=1e-4, atol=1e-3)


def test_merge_refuses_tied_and_quantised_weights() -> None:
    tied = wrap(tiny.llama(tie_word_embeddings=True), LoraConfig(r=2, target_modules=["lm_head", "q_proj"]))
    with pytest.raises(ValueError, match="weight of lm_head, which another module shares"):
        unwrap(tied, merge=True)
    assert is_wrapped(tied)

    class Quantised(nn.Linear):
        pass

    base = nn.Sequential(Quantised(4, 4))
    with pytest.raises(ValueError, match="merge=True needs plain linears, but 0 is a Quantised"):
        unwrap(wrap(base, LoraConfig(r=2, target_modules=["0"])), merge=True)


def test_any_module_with_the_signature_of_a_linear(rng: torch.Generator) -> None:
    class Int8Linear(nn.Module):
        """A weight-only quantised linear without parameters."""

        def __init__(self) -> None:
            super().__init__()
            self.in_features, self.out_features = 6, 4
            codes = torch.randint(-127, 128, (4, 6), dtype=torch.int8, generator=rng)
            self.codes = nn.Buffer(codes)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.codes.to(x.dtype).T / 127

    model = nn.Sequential(Int8Linear())
    base, x = model[0], torch.randn(3, 6, generator=rng)
    layer = adapter_layers(wrap(model, LoraConfig(r=2, lora_alpha=6, target_modules=["0"])))["0"]
    randomize(model, rng)
    expected = base(x) + 3.0 * (x @ layer.lora_a.T) @ layer.lora_b.T
    torch.testing.assert_close(model(x), expected)


@pytest.mark.compiler
def test_compile_without_graph_breaks(rng: torch.Generator) -> None:
    model = wrap(tiny.llama(), LoraConfig(r=3, **QV))
    randomize(model, rng)
    ids, directions = tokens(rng, rows=4), adapter_of(model).directions
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        torch.testing.assert_close(compiled(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-4)
        with directions.use(torch.tensor([3, 4]), torch.tensor([0.5, -0.5])):
            torch.testing.assert_close(compiled(ids).logits, model(ids).logits, rtol=1e-5, atol=1e-4)


def test_paths_do_not_see_a_compiled_level() -> None:
    model = tiny.llama()
    model.model = torch.compile(model.model, backend="eager")
    layers = adapter_layers(wrap(model, LoraConfig(r=3, **QV)))
    expected = adapter_layers(wrap(tiny.llama(), LoraConfig(r=3, **QV)))
    assert list(layers) == list(expected)
    assert [layer.stream for layer in layers.values()] == [layer.stream for layer in expected.values()]
    unwrap(model)
    assert not adapter_layers(model)


@pytest.mark.compiler
def test_export_holds_the_op_and_reads_the_directions(rng: torch.Generator) -> None:
    model = wrap(tiny.llama(), LoraConfig(r=3, **QV))
    randomize(model, rng)
    ids, directions = tokens(rng, rows=4), adapter_of(model).directions
    seeds, coeffs = torch.tensor([3, 4]), torch.tensor([0.5, -0.5])
    with directions.use(seeds, coeffs), torch.no_grad():
        program = torch.export.export(model, (ids,), {"use_cache": False}, strict=False)
        expected = model(ids).logits
        torch.testing.assert_close(
            program.module()(ids, use_cache=False).logits, expected, rtol=1e-5, atol=1e-4
        )
    ops = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert ops.count(torch.ops.mobizo.mp_lora.default) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "LoraConfig.use_dora=True is not supported, only False is"),
        ({"lora_dropout": 0.1}, "LoraConfig.lora_dropout=0.1"),
        ({"bias": "all"}, "LoraConfig.bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "LoraConfig.modules_to_save="),
        ({"lora_bias": True}, "LoraConfig.lora_bias=True"),
        ({"trainable_token_indices": [1]}, "LoraConfig.trainable_token_indices="),
        ({"layer_replication": [(0, 2)]}, "LoraConfig.layer_replication="),
        ({"init_lora_weights": "gaussian"}, "LoraConfig.init_lora_weights must be True, got 'gaussian'"),
        (
            {"rank_pattern": {"v_proj": 0}},
            "the rank of model.layers.0.self_attn.v_proj must be from 1 to 256, got 0",
        ),
        ({"r": 257}, "the rank of model.layers.0.self_attn.q_proj must be from 1 to 256, got 257"),
        (
            {"target_modules": ["q_proj", "query"]},
            "nothing is called query; the linears of LlamaForCausalLM are "
            "down_proj, gate_proj, k_proj, lm_head, o_proj, q_proj, up_proj, v_proj",
        ),
        ({"target_modules": ".*(query"}, r"LoraConfig: '.\*\(query' is no regular expression: missing \)"),
        ({"target_modules": ".*query"}, "LoraConfig selects nothing by target_modules='.\\*query'"),
        ({"layers_to_transform": [9]}, r"layers_to_transform=\[9\]; the linears of"),
        ({"target_modules": ["embed_tokens"]}, "matches model.embed_tokens \\(Embedding\\), not a linear"),
        ({"target_modules": ["self_attn"]}, "matches model.layers.0.self_attn \\(LlamaAttention\\)"),
    ],
)
def test_configs_that_cannot_be_honoured(options: dict[str, Any], message: str) -> None:
    model = tiny.llama()
    before = {name: (type(m), [p.requires_grad for p in m.parameters()]) for name, m in model.named_modules()}
    with pytest.raises(ValueError, match=message):
        wrap(model, LoraConfig(**{"r": 2, **QV, **options}))
    assert not is_wrapped(model)
    after = {name: (type(m), [p.requires_grad for p in m.parameters()]) for name, m in model.named_modules()}
    assert after == before


def test_no_modules_to_save_are_none() -> None:
    assert is_wrapped(wrap(tiny.llama(), LoraConfig(r=2, **QV, modules_to_save=[])))


def test_a_base_of_float64_is_refused() -> None:
    model = tiny.llama().double()
    message = "the weight of .*q_proj is float64; load it in float32, bfloat16 or float16"
    with pytest.raises(ValueError, match=message):
        wrap(model, LoraConfig(r=2, **QV))
    assert not is_wrapped(model)


def test_routed_experts_are_refused() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.experts = nn.ModuleList([nn.ModuleDict({"up_proj": nn.Linear(4, 4)})])

    with pytest.raises(ValueError, match=r"matches experts.0.up_proj, an expert"):
        wrap(Routed(), LoraConfig(r=2, target_modules=["up_proj"]))


def test_attention_of_a_mixture_of_experts(rng: torch.Generator) -> None:
    model = wrap(tiny.causal_lm(MixtralConfig(**tiny.SIZES, num_local_experts=2)), LoraConfig(r=2, **QV))
    assert len(adapter_layers(model)) == 4


def test_wrapping_and_unwrapping_in_the_wrong_order() -> None:
    model = tiny.llama()
    with pytest.raises(ValueError, match="LlamaForCausalLM is not wrapped; call wrap"):
        unwrap(model)
    wrap(model, LoraConfig(r=2, **QV))
    with pytest.raises(ValueError, match="LlamaForCausalLM is wrapped already; call unwrap"):
        wrap(model, LoraConfig(r=2, **QV))


def test_default_targets_need_a_known_architecture() -> None:
    with pytest.raises(ValueError, match="target_modules must be given; the linears of Sequential are 0"):
        wrap(nn.Sequential(nn.Linear(2, 2)), LoraConfig(r=2))


def test_repr_and_weight() -> None:
    base = nn.Linear(4, 3)
    layer = MPLoRALinear(base, 4, 3, rank=2, alpha=6, stream=1, directions=Directions())
    assert "rank=2, scaling=3" in repr(layer)
    assert layer.weight is base.weight and layer.bias is base.bias
