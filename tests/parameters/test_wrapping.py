"""What wrap_parameters leaves alone and refuses, and what a group of rows sees of each kind of module."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from helpers import assert_same_bits
from peft import LoraConfig
from torch import nn
from transformers import Gemma3TextConfig, Qwen3Config
from transformers.pytorch_utils import Conv1D

import mobizo_kernels as mobizo
from mobizo_kernels import ops, reference
from mobizo_kernels.lora import wrap
from mobizo_kernels.ops import parameter_stream
from mobizo_kernels.parameters import (
    has_wrapped_parameters,
    parameter_directions,
    unwrap_parameters,
    wrap_parameters,
)

SEEDS, COEFFS = torch.tensor([5, -6, 5]), torch.tensor([0.125, -0.25, 0.0])


class Gated(nn.Module):
    """A norm whose vectors act on each value, one of them frozen."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(width))
        self.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.norm(dim=-1, keepdim=True) * (1.0 + self.weight) + self.bias


def conv1d() -> nn.Module:
    module = Conv1D(9, 7)
    nn.init.normal_(module.bias)
    return module


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(7, 9), (6, 4, 7)),
    "linear-no-bias": (lambda: nn.Linear(7, 9, bias=False), (6, 7)),
    "conv1d": (conv1d, (6, 4, 7)),
    "layer_norm": (lambda: nn.LayerNorm(7), (6, 4, 7)),
    "rms_norm": (lambda: nn.RMSNorm(7), (3, 2, 4, 7)),
    "own-norm": (lambda: Gated(7), (6, 4, 7)),
    "embedding": (lambda: nn.Embedding(11, 7), (6, 4)),
}


def moved(module: nn.Module, group: int) -> nn.Module:
    """A float64 copy whose parameters are those that a group sees."""
    module = copy.deepcopy(module)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            one = slice(group, group + 1)
            parameter.data = reference.perturb(
                parameter.detach(), SEEDS[one], COEFFS[one], parameter_stream(name), 1.0, "outer"
            )
    return module.double()


@torch.no_grad()
@pytest.mark.parametrize("frozen", [None, "weight", "bias"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_each_group_sees(kind: str, frozen: str | None, rng: torch.Generator) -> None:
    make, shape = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = make()
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and name != frozen)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        return
    plain = copy.deepcopy(module)
    x = torch.randn(shape, generator=rng)
    if kind == "embedding":
        x = torch.randint(0, 11, shape, generator=rng)
    rest = module(x)
    wrap_parameters(module)
    assert_same_bits(module(x), rest)
    with parameter_directions(module).use(SEEDS, COEFFS):
        got = module(x)
        by_name = module(**{"x" if kind in ("conv1d", "own-norm", "rms_norm") else "input": x})
    assert_same_bits(got, by_name)
    wide = x if kind == "embedding" else x.double()
    expected = [moved(plain, group)(part) for group, part in enumerate(wide.chunk(3))]
    torch.testing.assert_close(got.double(), torch.cat(expected), rtol=1e-5, atol=1e-5)
    assert_same_bits(module(x), rest)
    for parameter, before in zip(module.parameters(), plain.parameters(), strict=True):
        assert type(parameter) is nn.Parameter
        assert_same_bits(parameter.detach(), before.detach())


def test_a_perturbation_below_the_spacing_of_bfloat16_is_seen(rng: torch.Generator) -> None:
    for module in (nn.LayerNorm(64), nn.Linear(64, 8)):
        wrap_parameters(module.to(torch.bfloat16))
        x = torch.randn(64, 64, generator=rng).bfloat16().repeat(2, 1)
        with torch.no_grad(), parameter_directions(module).use(SEEDS[:2], torch.tensor([1e-3, 0.0])):
            got = module(x)
        assert got.dtype == torch.bfloat16
        assert not torch.equal(got[:64], got[64:])


def test_a_model_stays_what_it_is(rng: torch.Generator) -> None:
    model = tiny.llama(tie_word_embeddings=True)
    before, names = model.state_dict(), [name for name, _ in model.named_parameters()]
    assert wrap_parameters(model) is model
    assert has_wrapped_parameters(model)
    assert [name for name, _ in model.named_parameters()] == names
    assert list(model.state_dict()) == list(before)
    twin = copy.deepcopy(model)
    twin.to(torch.bfloat16)
    for name, value in model.state_dict().items():
        assert_same_bits(value, before[name])
    batch = tiny.batch(rng)["input_ids"]
    for one in (model, twin):
        directions = parameter_directions(one)
        with torch.no_grad(), directions.use(SEEDS, COEFFS):
            assert directions.coeffs.dtype == torch.float32
            moved = one(batch).logits
            assert not torch.equal(moved, one(batch.roll(1, 0)).logits.roll(-1, 0))
        assert unwrap_parameters(one) is one
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in one.modules())
        with pytest.raises(ValueError, match=r"not wrapped; call wrap_parameters"):
            unwrap_parameters(one)


def test_a_failure_puts_the_parameters_back() -> None:
    norm = wrap_parameters(nn.Sequential(Gated(7), nn.LayerNorm(7), nn.Linear(7, 3)))
    with pytest.raises(RuntimeError), parameter_directions(norm).use(SEEDS, COEFFS), torch.no_grad():
        norm[0](torch.ones(6, 5))
    with pytest.raises(RuntimeError), parameter_directions(norm).use(SEEDS, COEFFS), torch.no_grad():
        norm[1](torch.ones(6, 5))
    assert all(type(parameter) is nn.Parameter for _, parameter in norm.named_parameters())
    assert len(list(norm.parameters())) == 6


def causal(kind: str) -> Any:
    grouped = {**tiny.SIZES, "num_key_value_heads": 2, "head_dim": 8}
    if kind == "qwen3":
        return tiny.causal_lm(Qwen3Config(**grouped))
    return tiny.causal_lm(Gemma3TextConfig(**grouped))


def test_norms_of_heads_and_scaled_embeddings() -> None:
    wrap_parameters(causal("qwen3"))
    gemma = causal("gemma3")
    before = dict(vars(gemma))
    with pytest.raises(ValueError, match=r"model.embed_tokens.weight: .*Gemma3TextScaledWordEmbedding"):
        wrap_parameters(gemma)
    assert vars(gemma) == before and not has_wrapped_parameters(gemma)
    assert not any(module._forward_hooks for module in gemma.modules())
    gemma.get_input_embeddings().requires_grad_(False)
    wrap_parameters(gemma)


def refused() -> dict[str, tuple[nn.Module, str]]:
    renorm = nn.Embedding(5, 4, max_norm=1.0)
    experts = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(3, 3)])})
    frozen = nn.Linear(3, 3).requires_grad_(False)
    return {
        "convolution": (nn.Sequential(nn.Conv1d(3, 3, 1)), r"0.weight: .*Conv1d .*\[3, 3, 1\]"),
        "renorm": (nn.Sequential(renorm), "0.weight: .*Embedding"),
        "expert": (experts, "experts.0 is an expert"),
        "float64": (nn.Sequential(nn.Linear(3, 3).double()), "0.weight must be .*float64"),
        "bilinear": (nn.Sequential(nn.Linear(3, 3), nn.PReLU(3)), "1.weight: .*PReLU"),
        "recurrent": (nn.Sequential(nn.GRU(3, 3)), "0.weight_ih_l0: .*GRU"),
        "meta": (nn.Linear(3, 3, device="meta"), "weight is on the meta device"),
        "frozen": (frozen, "no parameter of Linear requires a gradient"),
    }


@pytest.mark.parametrize("what", refused())
def test_refuses(what: str) -> None:
    module, message = refused()[what]
    with pytest.raises(ValueError, match=message):
        wrap_parameters(module)
    assert not has_wrapped_parameters(module)
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_one_way_of_wrapping_at_a_time() -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"])
    model = wrap_parameters(tiny.llama())
    with pytest.raises(ValueError, match=r"call unwrap_parameters\(model\) first"):
        wrap_parameters(model)
    with pytest.raises(ValueError, match=r"call unwrap_parameters\(model\) first"):
        wrap(model, config)
    with pytest.raises(ValueError, match=r"call unwrap\(model\) first"):
        wrap_parameters(wrap(tiny.llama(), config))


def test_an_input_that_groups_cannot_share() -> None:
    module = wrap_parameters(nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 3)))
    with torch.no_grad(), parameter_directions(module).use(SEEDS, COEFFS):
        with pytest.raises(
            ValueError, match=r"0 sees an input of shape \[1, 4\], not the rows of 3 .* freeze"
        ):
            module(torch.zeros(1, 4, dtype=torch.int64))
        with pytest.raises(ValueError, match=r"1 sees an input of shape \[2, 3, 3\]"):
            module[1](torch.zeros(2, 3, 3))


class GatedByInput(Gated):
    def forward(self, x: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(x) if gate is None else super().forward(x) * gate


@pytest.mark.parametrize("by_name", [False, True])
def test_a_norm_with_a_gate_is_refused(by_name: bool) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = GatedByInput(7)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(x, gate=x) if by_name else self.norm(x, x)

    layer = wrap_parameters(Layer())
    before = layer.norm.weight
    with (
        torch.no_grad(),
        parameter_directions(layer).use(SEEDS, COEFFS),
        pytest.raises(ValueError, match=r"^norm is given more than one tensor, such as a gate"),
    ):
        layer(torch.rand(6, 4, 7))
    assert layer.norm.weight is before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda model: model.double(),
            "embed_tokens.weight must be a parameter of float32, bfloat16 or float16",
        ),
        (lambda model: model.to("meta"), "embed_tokens.weight is on the meta device"),
    ],
    ids=["double", "meta"],
)
def test_a_model_that_changed_behind_wrapping(change: Callable[[nn.Module], object], message: str) -> None:
    model = wrap_parameters(tiny.llama())
    change(model)
    with pytest.raises(ValueError, match=message):
        mobizo.ZerothOrder(model, distribution="outer")


def test_a_model_that_mixes_groups() -> None:
    model = wrap_parameters(tiny.llama())
    directions = parameter_directions(model)

    def mixed(module: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
        return out + out.mean(dim=0, keepdim=True) * directions.trying

    model.model.norm.register_forward_hook(mixed)
    with pytest.raises(ValueError, match="LlamaForCausalLM mixes the groups of a batch"):
        mobizo.ZerothOrder(model, distribution="outer")


def test_other_distributions_are_refused() -> None:
    directions = parameter_directions(wrap_parameters(nn.Linear(3, 3)))
    with (
        pytest.raises(ValueError, match="distribution must be 'outer'"),
        directions.use(SEEDS, COEFFS, "gaussian"),
    ):
        pass
    assert not directions.trying
    assert ops.parameter_stream("weight") == directions.trials[0].stream


def scaled_up(module: nn.Module, args: Any, out: torch.Tensor) -> torch.Tensor:
    return 3 * out


def with_a_hook(part: str) -> Any:
    model = tiny.llama()
    model.get_submodule(part).register_forward_hook(scaled_up)
    return model


@pytest.mark.parametrize(
    "part", ["model.layers.0.mlp.up_proj", "model.embed_tokens", "model.norm", "lm_head"]
)
def test_hooks_of_others_see_what_moved_parameters_give(part: str, rng: torch.Generator) -> None:
    batch = tiny.batch(rng)
    batch["labels"][batch["labels"] != -100] = 5
    for candidates in (None, [5, 9]):
        options: dict[str, Any] = {"distribution": "outer", "queries": 2, "candidate_tokens": candidates}
        got = mobizo.ZerothOrder(wrap_parameters(with_a_hook(part)), **options).step(batch).losses
        expected = mobizo.ZerothOrder(with_a_hook(part), **options).step(batch).losses
        torch.testing.assert_close(got, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_linears_that_compute_something_else_are_refused() -> None:
    replaced = nn.Linear(3, 3)
    replaced.forward = lambda input: 3 * nn.functional.linear(input, replaced.weight)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"0.weight: no batched forward is known for a Linear"):
        wrap_parameters(nn.Sequential(replaced))
    with pytest.raises(ValueError, match=r"0.bias: no batched forward is known for a Linear"):
        wrap_parameters(nn.Sequential(torch.nn.utils.weight_norm(nn.Linear(3, 3))))


@pytest.mark.parametrize("norm", [lambda: Gated(7), lambda: nn.LayerNorm(7)], ids=["own", "layer_norm"])
def test_an_interrupt_puts_the_parameters_back(norm: Callable[[], nn.Module]) -> None:
    """For which torch calls no hook."""
    module = wrap_parameters(norm())
    before = dict(module.named_parameters())

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    handle = module.register_forward_pre_hook(interrupt)
    with (
        pytest.raises(KeyboardInterrupt),
        torch.no_grad(),
        parameter_directions(module).use(SEEDS, COEFFS),
    ):
        module(torch.ones(6, 7))
    handle.remove()
    assert all(parameter is before[name] for name, parameter in module.named_parameters())
    assert len(before) == 2
    rest = module(torch.ones(6, 7))
    assert rest.requires_grad and rest.shape == (6, 7)


def test_gradients_are_refused() -> None:
    for module, x in ((nn.Linear(7, 3), torch.ones(6, 7)), (nn.Embedding(5, 3), torch.zeros(6, 2).long())):
        wrap_parameters(module)
        with (
            pytest.raises(RuntimeError, match="without gradients: call the model under torch.no_grad"),
            parameter_directions(module).use(SEEDS, COEFFS),
        ):
            module(x)
