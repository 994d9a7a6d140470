"""What `mobizo bench` does: time a step on this machine, beside the bare forward and a copy in memory."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from time import perf_counter
from typing import Any

import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from mobizo_kernels import cpu_capability, ops
from mobizo_kernels.cli.memory import peak_rss_mb, reset_peak_rss
from mobizo_kernels.cli.settings import RANDOM_MODEL, BenchSettings
from mobizo_kernels.cli.task_settings import as_json
from mobizo_kernels.conventions import IGNORED
from mobizo_kernels.errors import InputError, blame_input
from mobizo_kernels.lora import tuned_layers, wrap
from mobizo_kernels.lora.targets import layer_range, linear_names
from mobizo_kernels.models import DTYPES, load_model, quantize_base
from mobizo_kernels.models.limits import positions
from mobizo_kernels.run_defaults import RUN
from mobizo_kernels.zo import ZerothOrder

_NOISE = 1 << 24  # elements that are perturbed: 64 MB, more than caches hold
_SMOLLM2_135M = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)


def bench(settings: BenchSettings) -> dict[str, Any]:
    """Time a step of the recipe of `mobizo train` on random tokens, each with a label of two.

    The forward is that of the model without adapters. Each is called once before it is timed; what is given
    are medians of `settings.rounds`.

    Returns:
        Milliseconds of the bare forward of the rows and of a step over all groups of them; bandwidth of
        :func:`mobizo_kernels.ops.perturb_` on float32 and of a copy, both in 10^9 bytes read and written in a
        second; peak memory; the settings.

    Raises:
        InputError: the model does not exist, or has no room for the rows.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    model = _model(settings)
    most = positions(model.config)
    if most is not None and settings.tokens > most:
        raise InputError(f"tokens: the model has {most} positions, got {settings.tokens}")
    batch, tail = _batch(settings, model.config.get_text_config().vocab_size)
    with blame_input("quantization"):
        quantize_base(model, settings.quantization)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    prompt = {name: batch[name][:, :-1] for name in ("input_ids", "attention_mask")}

    @torch.inference_mode()
    def forward() -> None:
        model(**prompt, use_cache=False, logits_to_keep=1)

    forward_ms = _median(settings.rounds, forward)
    with blame_input("settings"):
        wrap(model, _config(settings, model, tail))
        zo = ZerothOrder(
            model,
            queries=settings.queries,
            eps=RUN.eps,
            normalize=RUN.normalize,
            lr=RUN.lr,
            distribution=settings.distribution,
            candidate_tokens=[0, 1],
        )
    reset_peak_rss()
    step_ms, peak_mb = _median(settings.rounds, lambda: zo.step(batch)), peak_rss_mb()
    values, copied = torch.zeros(_NOISE), torch.empty(_NOISE)
    seed, coefficient = torch.tensor([1]), torch.tensor([1e-3])
    noise_ms = _median(
        settings.rounds, lambda: ops.perturb_(values, seed, coefficient, 0, 1.0, settings.distribution)
    )
    copy_ms = _median(settings.rounds, lambda: copied.copy_(values))
    moved = 2 * values.nbytes
    return {
        "kernels": cpu_capability(),
        "threads": torch.get_num_threads(),
        "parameters": parameters,
        "tuned_parameters": sum(layer.lora_b.numel() for layer in tuned_layers(model).values()),
        "groups": zo.estimator.groups,
        "forward_ms": round(forward_ms, 2),
        "step_ms": round(step_ms, 2),
        "step_per_forward": round(step_ms / forward_ms, 2),
        "noise_gb_per_s": round(moved / noise_ms / 1e6, 2),
        "copy_gb_per_s": round(moved / copy_ms / 1e6, 2),
        "peak_rss_mb": round(peak_mb, 1),
        "settings": as_json(settings),
    }


def _model(settings: BenchSettings) -> PreTrainedModel:
    if settings.model != RANDOM_MODEL:
        return load_model(settings.model, settings.dtype)[0]
    return AutoModelForCausalLM.from_config(_SMOLLM2_135M, dtype=DTYPES[settings.dtype]).eval()


def _config(settings: BenchSettings, model: PreTrainedModel, tail: list[int]) -> LoraConfig:
    """Adapters as those of `mobizo train`. Raises InputError if there are no such layers."""
    layers = model.config.get_text_config().num_hidden_layers
    return LoraConfig(
        r=settings.rank,
        lora_alpha=2 * settings.rank,
        target_modules=linear_names(model),
        layers_to_transform=layer_range(settings.layers, layers),
        task_type="CAUSAL_LM",
        alora_invocation_tokens=tail or None,
    )


def _batch(settings: BenchSettings, vocabulary: int) -> tuple[dict[str, torch.Tensor], list[int]]:
    """Rows of random tokens that end in those from which the adapters act and a label, and these tokens."""
    if settings.tail + 2 > settings.tokens:
        raise InputError(f"tokens: expected more than --tail and a label have, got {settings.tokens}")
    generator = torch.Generator().manual_seed(0)
    shape = (settings.batch_size, settings.tokens)
    tokens = torch.randint(2, vocabulary, shape, generator=generator)
    tail = tokens[0, settings.tokens - 1 - settings.tail : -1].clone()
    tokens[:, settings.tokens - 1 - settings.tail : -1] = tail
    tokens[:, -1] = torch.arange(settings.batch_size) % 2
    labels = torch.full_like(tokens, IGNORED)
    labels[:, -1] = tokens[:, -1]
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": labels}, tail.tolist()


def _median(rounds: int, call: Callable[[], object]) -> float:
    """Milliseconds that a call takes, behind a first one that is not timed."""
    call()
    seconds = []
    for _ in range(rounds):
        started = perf_counter()
        call()
        seconds.append(perf_counter() - started)
    return 1e3 * median(seconds)
