"""How each program that bench.py measures is made."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import peft
import torch
from executorch.exir import EdgeProgramManager, ExecutorchBackendConfig
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.passes.init_mutable_pass import InitializedMutableBufferPass
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from benchmarks.executorch.cases import SIZES, Case, Files
from benchmarks.executorch.first_order import FirstOrderLinear, lower_first_order
from benchmarks.executorch.peers import (
    DUAL_STATE,
    EPS,
    LR,
    DualForward,
    DualLinear,
    Forward,
    Inputs,
    LastGradient,
    adapt,
    decoder,
    lower,
)
from mobizo_kernels.executorch.export import export_training_program
from mobizo_kernels.files.file import written_whole
from mobizo_kernels.loss import IGNORED, LabelledLoss
from mobizo_kernels.models import SMOLLM2, load_model

RANK, TARGETS = 8, ("q_proj", "v_proj")
CANDIDATES = (5, 9)


def make(case: Case, model: str, length: int, files: Files) -> None:
    """Export the program of a case and write its arguments."""
    torch.manual_seed(0)
    decoder_model = load(model)
    inputs = batch(case.rows // case.groups, length)
    arguments = inputs
    loss = eager_loss(decoder_model, inputs)
    files.program.parent.mkdir(parents=True, exist_ok=True)
    if case.kind == "ours":
        description = export_training_program(
            decoder_model,
            files.program,
            queries=case.queries,
            batch_size=len(inputs[0]),
            max_length=length,
            targets=adapter(case, decoder_model, inputs[0]),
            distribution=case.distribution,
            quantization=case.quantization,
            lowering=case.lowering or "custom-op",
            dynamic_length=False,
            candidate_tokens=CANDIDATES,
        )
        arguments = (*inputs, *directions(case.queries))
        if description.head is not None:
            arguments = (*arguments, torch.zeros(len(CANDIDATES), description.head.shape[1]))  # no readout
    else:
        with decoder(decoder_model, case.groups, inputs, CANDIDATES, case.quantization) as program:
            if case.kind == "dual":
                arguments = (*inputs, torch.ones(1))
                gradient = LastGradient()
                adapt(program, TARGETS, partial(DualLinear, rank=RANK, gradient=gradient))
                lowered = lower(DualForward(program, gradient), arguments)
            elif case.kind == "first-order":
                adapt(program, TARGETS, partial(FirstOrderLinear, rank=RANK))
                lowered = lower_first_order(Forward(program), inputs, case.lowering)
            else:
                lowered = lower(Forward(program), inputs)
        write(lowered, files.program)
    tensors = {str(i): tensor.contiguous() for i, tensor in enumerate(arguments)}
    save_file(tensors, files.arguments, metadata={"loss": str(loss)})


def adapter(case: Case, model: PreTrainedModel, input_ids: torch.Tensor) -> peft.LoraConfig:
    """The configuration of ours; its invocation tokens are the last of a row, if any."""
    layers = model.config.get_text_config().num_hidden_layers
    return peft.LoraConfig(
        r=RANK,
        lora_alpha=2 * RANK,
        target_modules=list(case.targets),
        layers_to_transform=list(range(round(layers * case.untuned / 100), layers)),
        alora_invocation_tokens=input_ids[0, -case.tail :].tolist() if case.tail else None,
        task_type="CAUSAL_LM",
    )


def write(lowered: EdgeProgramManager, path: Path) -> None:
    config = ExecutorchBackendConfig(
        passes=[InitializedMutableBufferPass(list(DUAL_STATE))],
        memory_planning_pass=MemoryPlanningPass(share_mutable_buffers=False),
    )
    program = lowered.to_executorch(config)
    with written_whole(path) as scratch, scratch.open("wb") as file:
        program.write_to_file(file)


def load(model: str) -> PreTrainedModel:
    """In float32 and frozen: SmolLM2, or a Llama with random weights."""
    if model == SMOLLM2:
        return load_model(model, "float32")[0].requires_grad_(False)
    heads = SIZES[model]["hidden_size"] // 64 or 1
    config = LlamaConfig(
        **SIZES[model],
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 3),
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def batch(rows: int, length: int) -> Inputs:
    """The same row `rows` times, for every case to have the same loss; the last position is labelled."""
    ids = torch.randint(10, 250, (1, length)).repeat(rows, 1)
    positions = torch.full((rows, 1), length - 1)
    return ids, torch.ones_like(ids), positions, torch.full((rows, 1), CANDIDATES[0])


def directions(queries: int) -> Inputs:
    """Seeds and coefficients of a two-sided step, and an update too small to matter to the loss."""
    seeds = torch.arange(queries)
    coeffs = torch.full((queries,), EPS)
    return seeds.repeat(2), torch.cat([coeffs, -coeffs]), seeds, torch.full((queries,), 1e-3 * LR)


@torch.no_grad()
def eager_loss(model: PreTrainedModel, inputs: Inputs) -> float:
    ids, targets = torch.cat([inputs[0], inputs[3]], dim=1), torch.full_like(inputs[0], IGNORED)
    labelled = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "labels": torch.cat([targets, inputs[3]], 1),
    }
    return LabelledLoss(model, candidate_tokens=CANDIDATES)(labelled, 1).item()
