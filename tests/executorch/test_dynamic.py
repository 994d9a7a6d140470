"""Programs of "int8-dynamic": what XNNPACK is given of them, and steps beside those of eager."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import tiny
import torch
import transformers
from architectures import GROUPED, OPTIONS, SIZES
from executorch.backends.xnnpack import xnnpack_preprocess
from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import (
    PerChannelQuant,
    PerTokenDynamicQuant,
    XNNDatatype,
    XNNFullyConnected,
    XNNGraph,
    XNNQuantizedTensorValue,
)
from executorch.exir._serialize._program import deserialize_pte_binary
from programs import DEFAULTS, export_quietly, no_update, program_batch, tiny_dataset, tiny_rows
from torch import nn

from mobizo_kernels.executorch import Trainer
from mobizo_kernels.executorch.quantization import quantize
from mobizo_kernels.journal import read_journal

QDINT8, QCINT8 = XNNDatatype.xnn_datatype_qdint8, XNNDatatype.xnn_datatype_qcint8


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[XNNGraph]:
    """What XNNPACK is given while something is exported."""
    found: list[XNNGraph] = []
    serialize = xnnpack_preprocess.serialize_xnnpack_binary

    def keep(graph: XNNGraph, *rest: Any) -> bytes:
        found.append(graph)
        return serialize(graph, *rest)

    monkeypatch.setattr(xnnpack_preprocess, "serialize_xnnpack_binary", keep)
    return found


@pytest.mark.parametrize(
    ("config", "targets", "linears", "biases"),
    [
        (transformers.Qwen2Config(**GROUPED), ["q_proj", "v_proj"], 7, 3),
        (
            transformers.OPTConfig(
                **{k: v for k, v in SIZES.items() if k != "intermediate_size"}, ffn_dim=48,
                word_embed_proj_dim=32,
            ),
            ["k_proj", "fc1"], 6, 6,
        ),
    ],
    ids=["Qwen2", "OPT"],
)  # fmt: skip
def test_linears_have_kernels_for_both(
    config: transformers.PretrainedConfig,
    targets: list[str],
    linears: int,
    biases: int,
    graphs: list[XNNGraph],
    tmp_path: Path,
) -> None:
    """Each is XNNPACK's, over inputs of 8 bits with a scale for each row and weights with one for each
    output; a bias is within it. Means of norms, rotations and the head's rows of two candidates are float32.
    """
    path = tmp_path / "model.pte"
    export_quietly(
        tiny.causal_lm(config), path, targets=peft.LoraConfig(r=4, target_modules=targets),
        quantization="int8-dynamic", **OPTIONS,
    )  # fmt: skip
    products = [(graph, node.xnode_union) for graph in graphs for node in graph.xnodes]
    rounded = with_bias = 0
    for graph, product in products:
        if not isinstance(product, XNNFullyConnected):
            continue
        values = {number_of(value.xvalue_union): value.xvalue_union for value in graph.xvalues}
        inputs, weight = values[product.input1_id], values[product.filter_id]
        if not isinstance(inputs, XNNQuantizedTensorValue):
            assert not isinstance(weight, XNNQuantizedTensorValue)
            continue
        assert isinstance(weight, XNNQuantizedTensorValue)
        assert (inputs.tensor_value.datatype, weight.tensor_value.datatype) == (QDINT8, QCINT8)
        assert isinstance(inputs.quant_params, PerTokenDynamicQuant)
        assert inputs.quant_params.num_nonbatch_dims == 1
        assert isinstance(weight.quant_params, PerChannelQuant) and weight.quant_params.channel_dim == 0
        rounded += 1
        with_bias += product.bias_id != 2**32 - 1
    methods = 2  # train_step and evaluate
    assert (rounded, with_bias) == (methods * linears, methods * biases)
    for plan in deserialize_pte_binary(path.read_bytes()).program.execution_plan:
        assert not [op.name for op in plan.operators if "quantiz" in op.name or "linear" in op.name]


def number_of(value: Any) -> int:
    return int((value.tensor_value if isinstance(value, XNNQuantizedTensorValue) else value).id_out)


@pytest.mark.parametrize("bias", [True, False])
def test_the_arithmetic(bias: bool, rng: torch.Generator) -> None:
    """Against float64: whole numbers of 8 bits, a range from least to greatest for each row."""
    model = tiny.causal_lm(transformers.Qwen2Config(**GROUPED))
    linear = model.model.layers[0].self_attn.q_proj
    if not bias:
        linear.bias = None
    else:
        nn.init.normal_(linear.bias, generator=rng)
    added = 0.0 if linear.bias is None else linear.bias.detach().double().numpy()
    quantize(model, "int8-dynamic")
    linear = model.model.layers[0].self_attn.q_proj
    weight = linear.weight.dequantize().double().numpy()
    x = torch.randn(6, 32, generator=rng) + torch.linspace(-3, 3, 6)[:, None]
    rows = x.double().numpy()
    least, greatest = (np.minimum(rows.min(1), 0)[:, None], np.maximum(rows.max(1), 0)[:, None])
    scale = ((greatest - least) / 255).astype(np.float32).astype(np.float64)
    zero = np.clip(-128 - np.rint(least / scale), -128, 127)
    whole = np.clip(np.rint(rows / scale) + zero, -128, 127) - zero
    expected = (whole * scale) @ weight.T + added
    np.testing.assert_allclose(linear(x).detach(), expected, rtol=1e-4, atol=1e-5)


def test_a_group_does_not_depend_on_the_others(tmp_path: Path, rng: torch.Generator) -> None:
    """What is rounded in a row depends on that row: whatever the other groups try, its loss has the same
    bits, and a perturbation has the same loss in the half of + and in that of -. A journal says what it was.
    """
    model = tiny.causal_lm(transformers.LlamaConfig(**GROUPED))
    path = tmp_path / "model.pte"
    options = {**DEFAULTS, "quantization": "int8-dynamic", "dynamic_length": False}
    export_quietly(model, path, targets=["q_proj", "down_proj"], **options)
    trainer = Trainer(path)
    assert trainer.description.quantization == "int8-dynamic"
    batch = program_batch(tiny_rows(rng, (9, 4, 12)), trainer.description)
    none = no_update(trainer.description)

    def losses(seeds: list[int], coeffs: list[float]) -> np.ndarray:
        return trainer.train_step(*batch, np.array(seeds), np.array(coeffs, np.float32), *none)[0]

    first = losses([1, 2, 1, 2], [0.05, 0.05, -0.05, -0.05])
    assert len(set(first.tolist())) == 4
    other = losses([1, 5, 6, 7], [0.05, 1.0, -2.0, 0.3])
    assert other[0] == first[0] and (other[1:] != first[1:]).all()
    swapped = losses([1, 2, 1, 2], [-0.05, -0.05, 0.05, 0.05])
    assert (swapped == np.roll(first, 2)).all()

    data, journal = tiny_dataset(tmp_path / "data.safetensors", rng), tmp_path / "journal"
    trainer.train(data, steps=2, eval_every=0, keep="last", journal=journal)
    assert read_journal(journal)[0].base_dtype == "int8-dynamic"
