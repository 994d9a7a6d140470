"""What the exporter writes: a description, plans that train in place, and nothing at all where it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from executorch.exir._serialize._program import deserialize_pte_binary
from executorch.exir.schema import DelegateCall, ExecutionPlan, KernelCall
from programs import (
    CANDIDATES,
    DEFAULTS,
    eager_twin,
    export_quietly,
    lora_b_of,
    lora_config,
    other_program,
    tiny_llama,
)

import mobizo_kernels
from mobizo_kernels import OneSided, TwoSided, UpdateRule
from mobizo_kernels.executorch import Trainer, read_description
from mobizo_kernels.executorch.description import parse_description
from mobizo_kernels.lora import adapter_config, adapter_layers, model_fingerprint

METHODS = {"train_step", "evaluate", "update", "get_adapter", "set_adapter", "mobizo_description"}


@pytest.fixture
def plans(program: Path) -> dict[str, ExecutionPlan]:
    """The emitted methods by their names."""
    return {plan.name: plan for plan in deserialize_pte_binary(program.read_bytes()).program.execution_plan}


def calls(plan: ExecutionPlan) -> list[tuple[str, set[int]]]:
    """Every op or delegate of a method in the order of execution, with the values that it is given."""
    found = []
    for instruction in plan.chains[0].instructions:
        arguments = instruction.instr_args
        if isinstance(arguments, KernelCall):
            op = plan.operators[arguments.op_index]
            found.append((op.name, set(arguments.args)))
        elif isinstance(arguments, DelegateCall):
            found.append((plan.delegates[arguments.delegate_index].id, set(arguments.args)))
    return found


def buffers_of(plan: ExecutionPlan) -> dict[int, Any]:
    """The LoRA-B of a method: by the numbers of their values, the tensors."""
    tensors = {index: value.val for index, value in enumerate(plan.values)}
    return {
        index: tensor
        for index, tensor in tensors.items()
        if getattr(getattr(tensor, "extra_tensor_info", None), "fully_qualified_name", "").endswith("lora_b")
    }


def test_description(program: Path) -> None:
    model, found = eager_twin(), read_description(program)
    description = json.loads(found.text)
    versions = description.pop("versions")
    assert versions["mobizo_kernels"] == mobizo_kernels.__version__
    assert set(versions) == {"mobizo_kernels", "executorch", "torch", "transformers"}
    adapter = description.pop("adapter")
    assert description == {
        "format": 1,
        "model": {
            "name": model.name_or_path,
            "architecture": "LlamaForCausalLM",
            "fingerprint": model_fingerprint(model),
        },
        "quantization": "none",
        "queries": 2,
        "batch_size": 3,
        "groups": 4,
        "estimator": "two_sided",
        "distribution": "gaussian",
        "optimizer": {"name": "sgd", "momentum": 0.0, "weight_decay": 0.0},
        "min_length": 3,
        "max_length": 24,
        "dynamic_length": True,
        "targets_per_row": 1,
        "invocation_tokens": None,
        "tail_length": None,
        "candidate_tokens": list(CANDIDATES),
        "vocabulary": tiny.VOCABULARY,
        "pad_token": 0,
        "evaluation_rows": 12,
        "tokenizer": None,
        "head": {
            "name": "lm_head.weight",
            "shape": list(model.get_output_embeddings().weight.shape),
            "scale": 1.0,
            "soft_cap": None,
            "rank": 0,
            "pattern": "^lm_head",
            "target_modules": ["lm_head", "q_proj", "v_proj"],
        },
    }
    assert adapter["config"] == adapter_config(model)
    assert adapter["parameters"] == [
        {
            "name": f"{name}.weight",
            "stream": layer.stream,
            "lora_a": list(layer.lora_a.shape),
            "lora_b": list(layer.lora_b.shape),
            "scaling": 2.0,
        }
        for name, layer in adapter_layers(model).items()
    ]
    assert Trainer(program).description == found == parse_description(found.text)


def test_every_method_is_there(plans: dict[str, ExecutionPlan]) -> None:
    assert set(plans) == METHODS


def test_update_comes_before_the_forward(plans: dict[str, ExecutionPlan]) -> None:
    """All of B is updated before the first adapter reads any of it."""
    names = [name for name, _ in calls(plans["train_step"])]
    parameters = len(buffers_of(plans["train_step"]))
    assert names.count("mobizo::zo_update") == names.count("mobizo::mp_lora") == parameters == 2
    last_update = max(i for i, name in enumerate(names) if name == "mobizo::zo_update")
    assert last_update < names.index("mobizo::mp_lora")


@pytest.mark.parametrize(
    ("method", "ops"),
    [
        ("train_step", {"mobizo::zo_update", "mobizo::mp_lora"}),
        ("evaluate", {"mobizo::mp_lora"}),
        ("update", {"mobizo::zo_update"}),
    ],
)
def test_only_our_ops_touch_the_adapter(method: str, ops: set[str], plans: dict[str, ExecutionPlan]) -> None:
    """No copy of a B is made, and no delegate takes one for a constant."""
    buffers = buffers_of(plans[method])
    assert len(buffers) == 2
    assert {name for name, arguments in calls(plans[method]) if arguments & set(buffers)} == ops


def test_the_state_of_all_methods_is_the_adapter(program: Path, plans: dict[str, ExecutionPlan]) -> None:
    """One arena of its own holds every B at the same place in each method, and nothing else."""
    size = sum(4 * b.numel() for b in lora_b_of(Trainer(program)))
    places: dict[str, set[int]] = {}
    for name in METHODS - {"mobizo_description"}:
        assert plans[name].non_const_buffer_sizes[2:] == [size]
        for tensor in buffers_of(plans[name]).values():
            assert tensor.allocation_info.memory_id == 2
            where = tensor.allocation_info.memory_offset_low
            places.setdefault(tensor.extra_tensor_info.fully_qualified_name, set()).add(where)
    assert len(places) == 2
    assert all(len(offsets) == 1 for offsets in places.values())


def test_delegates(plans: dict[str, ExecutionPlan]) -> None:
    """XNNPACK has the decoder; methods that move the adapter are free of it."""
    for name in ("update", "get_adapter", "set_adapter"):
        assert not plans[name].delegates
    for name in ("train_step", "evaluate"):
        assert plans[name].delegates
        assert {delegate.id for delegate in plans[name].delegates} == {"XnnpackBackend"}
        assert not {"aten::linear", "aten::mm", "aten::addmm", "aten::bmm"} & {
            op for op, _ in calls(plans[name])
        }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": 0}, "queries must be at least 1, got 0"),
        ({"queries": 257}, "queries must be from 1 to 256, got 257"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"max_length": 3}, "max_length must be above 3, got 3"),
        ({"max_length": 65}, "max_length"),
        ({"targets_per_row": 0}, "targets_per_row must be from 1 to max_length"),
        ({"targets_per_row": 25}, "targets_per_row must be from 1 to max_length .24., got 25"),
        ({"estimator": "three_sided"}, "estimator"),
        ({"estimator": OneSided(2)}, "queries must be left out where estimator is an object, got 2"),
        ({"optimizer": UpdateRule.sgd(), "momentum": 0.5}, "momentum must be left out where optimizer is an"),
        (
            {"distribution": "uniform"},
            "distribution must be one of gaussian, rademacher, outer, got 'uniform'",
        ),
        ({"quantization": "int2"}, "quantization must be one of none, int8, int8-dynamic, int4, got 'int2'"),
        ({"targets": None}, "targets must be given"),
        ({"targets": ["no_such_linear"]}, "no_such_linear"),
        ({"candidate_tokens": [5]}, "candidate_tokens"),
        ({"candidate_tokens": [5, 5]}, "candidate_tokens"),
        ({"candidate_tokens": [5, 61]}, "candidate_tokens"),
    ],
    ids=str,
)
def test_refuses_and_writes_nothing(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pte"
    path.write_text("what was there")
    with pytest.raises(ValueError, match=message):
        export_quietly(tiny_llama(1), path, **{"targets": lora_config(), **DEFAULTS, **options})
    assert path.read_text() == "what was there"
    assert os.listdir(tmp_path) == ["model.pte"]


def test_an_estimator_and_a_rule_as_objects(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> None:
    options = {name: value for name, value in DEFAULTS.items() if name != "queries"}
    options |= {"seed": 1, "dynamic_length": False}
    objects = {"estimator": TwoSided(3, eps=0.5), "optimizer": UpdateRule.sgd(lr=0.5)}
    export_quietly(tiny_llama(1), tmp_path / "model.pte", targets=lora_config(), **options, **objects)
    assert (tmp_path / "model.pte").read_bytes() == other_program(tmp_path_factory).read_bytes()


def test_refuses_targets_for_a_wrapped_model(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="targets must be None for a wrapped model"):
        export_quietly(eager_twin(), tmp_path / "model.pte", targets=lora_config(), **DEFAULTS)


def test_refuses_what_is_no_causal_lm(tmp_path: Path) -> None:
    with pytest.raises((ValueError, TypeError), match="Linear"):
        export_quietly(torch.nn.Linear(3, 3), tmp_path / "model.pte", targets=["weight"], **DEFAULTS)


@pytest.mark.parametrize("where", ["", "no_such_folder/model.pte"])
def test_a_path_that_cannot_be_written_is_refused_before_the_work(where: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="path"):
        export_quietly(tiny_llama(1), tmp_path / where, targets=lora_config(), **DEFAULTS)


def test_the_description_is_json_in_the_file(program: Path) -> None:
    """A reader without ExecuTorch finds it, too."""
    start = program.read_bytes().index(b'{"format": 1')
    assert program.read_bytes()[start:].startswith(read_description(program).text.encode() + b"\0")
