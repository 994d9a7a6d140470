"""Programs whose step is stock operators alone: what is in them, and that they train as with our ops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from executorch.exir._serialize._program import deserialize_pte_binary
from executorch.exir.schema import DelegateCall, ExecutionPlan, KernelCall
from executorch.runtime import Runtime, Verification
from helpers import directions
from journals import ADAM
from programs import (
    CANDIDATES,
    DEFAULTS,
    Unchanged,
    assert_same_adapter,
    described,
    eager_twin,
    entries,
    export_quietly,
    lora_b_of,
    lora_config,
    program_batch,
    tiny_llama,
    tiny_program,
    tiny_rows,
)

import mobizo_kernels as mobizo
from mobizo_kernels import ops
from mobizo_kernels.data import collate, read_dataset
from mobizo_kernels.executorch import Trainer, read_description
from mobizo_kernels.executorch.description import parse_description
from mobizo_kernels.journal import replay
from mobizo_kernels.lora import adapter_layers
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.optim.seeds import query_seeds

OPTIONS: dict[str, Any] = {"distribution": "outer", "lowering": "delegated"}
QUERIES = DEFAULTS["queries"]
RULES: list[dict[str, Any]] = [
    ADAM,
    {"name": "sign", "weight_decay": 0.0},
    {"name": "sgd", "momentum": 0.5, "weight_decay": 0.25},
]


@pytest.fixture
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny delegated program."""
    return tiny_program(tmp_path_factory, **OPTIONS)


@pytest.fixture
def plans(program: Path) -> dict[str, ExecutionPlan]:
    """The emitted methods by their names."""
    return {plan.name: plan for plan in deserialize_pte_binary(program.read_bytes()).program.execution_plan}


def names_of(plan: ExecutionPlan) -> list[str]:
    """Every op or delegate of a method in the order of execution."""
    names = []
    for instruction in plan.chains[0].instructions:
        arguments = instruction.instr_args
        if isinstance(arguments, KernelCall):
            names.append(plan.operators[arguments.op_index].name)
        elif isinstance(arguments, DelegateCall):
            names.append(plan.delegates[arguments.delegate_index].id)
    return names


def test_one_delegate_and_no_op_of_ours(plans: dict[str, ExecutionPlan]) -> None:
    assert set(plans) == {"train_step", "evaluate", "get_adapter", "mobizo_description"}
    for method in ("train_step", "evaluate"):
        names = names_of(plans[method])
        assert names.count("XnnpackBackend") == len(plans[method].delegates) == 1
        assert not [name for name in names if name.startswith("mobizo")]
        assert not {"aten::linear", "aten::mm", "aten::addmm", "aten::bmm"} & set(names)


def test_the_description_names_every_input(program: Path, plans: dict[str, ExecutionPlan]) -> None:
    description = read_description(program)
    assert description.delegated and description == parse_description(description.text)
    assert description == Trainer(program).description
    layers = adapter_layers(eager_twin())
    inputs = parse_description(description.text).inputs["train_step"]
    assert [value.name for value in inputs] == [
        "input_ids", "attention_mask", "target_positions", "target_ids",
        *(f"{factor}:{name}.weight" for factor in ("lora_b", "u", "v") for name in layers), "head",
    ]  # fmt: skip
    for method, expected in description.inputs.items():
        plan = plans[method]
        assert [tuple(plan.values[i].val.sizes) for i in plan.inputs] == [value.shape for value in expected]


def zeroth_order(model: Any, **options: Any) -> mobizo.ZerothOrder:
    settings = {"queries": QUERIES, "eps": 1e-2, "lr": 1e-2, "distribution": "outer"}
    return mobizo.ZerothOrder(model, candidate_tokens=CANDIDATES, **{**settings, **options})


def test_steps_are_those_of_eager(program: Path, rng: torch.Generator) -> None:
    """The updates that eager computed are given to the trainer: B has its bits."""
    trainer, model = Trainer(program), eager_twin()
    zo, pending = zeroth_order(model), (None, None)
    for step, lengths in enumerate([(4, 4, 4), (25, 25, 25), (2, 2, 2), (25, 2, 14)]):
        rows = tiny_rows(rng, lengths)
        before = [layer.lora_b.detach().clone() for layer in adapter_layers(model).values()]
        expected = zo.step(collate(rows, 0))
        seeds = query_seeds(0, step, QUERIES)
        groups = zo.estimator.seeds(seeds).numpy(), zo.estimator.coeffs().numpy()
        losses, norm = trainer.train_step(*program_batch(rows, trainer.description), *groups, *pending)
        np.testing.assert_allclose(losses, expected.losses, rtol=1e-5, atol=1e-5)
        for mine, other in zip(lora_b_of(trainer), before, strict=True):
            assert torch.equal(mine, other)
        assert (norm > 0) == (step > 0)
        pending = seeds.numpy(), zo.optimizer.record(expected.projected_grads).coeffs.numpy()
    trainer.update(*pending)
    assert_same_adapter(trainer, model)


def test_evaluation_sees_the_updates(program: Path, dataset: Path, rng: torch.Generator) -> None:
    trainer, model = Trainer(program), eager_twin()
    seeds, coeffs = directions(QUERIES, rng)
    norm = trainer.update(seeds.numpy(), coeffs.numpy())
    for layer in adapter_layers(model).values():
        ops.perturb_(layer.lora_b, seeds, coeffs, layer.stream, 1.0, "outer")
    assert_same_adapter(trainer, model)
    assert norm == pytest.approx(sum(b.square().sum().item() for b in lora_b_of(trainer)) ** 0.5, rel=1e-5)
    loss = LabelledLoss(model, candidate_tokens=CANDIDATES)
    expected = torch.cat([loss.logits(collate([row], 0)) for row in read_dataset(dataset).test])
    np.testing.assert_allclose(trainer.evaluate(dataset).scores, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", [None, *RULES], ids=str)
def test_replay_gives_the_bits_of_eager(
    rule: dict[str, Any] | None, program: Path, dataset: Path, tmp_path: Path
) -> None:
    """Nothing in the program depends on its optimizer, so one program stands for all of them."""
    if rule is not None:
        other = tmp_path / "model.pte"
        other.write_bytes(described(program, entries(optimizer=rule)))
        program = other
    journal, trainer, again, model = tmp_path / "journal", Trainer(program), Trainer(program), eager_twin()
    run = {"eps": 1e-2, "lr": 1e-3, "eval_every": 0, "keep": "last"}
    trainer.train(dataset, steps=5, journal=journal, **run)
    assert replay(model, journal) == again.replay(journal) == 5
    assert all(b.any() for b in lora_b_of(trainer))
    assert_same_adapter(trainer, model)
    assert_same_adapter(again, trainer)


def test_a_resumed_run_ends_as_one_in_one_go(program: Path, dataset: Path, tmp_path: Path) -> None:
    run = {"steps": 8, "eval_every": 2, "eps": 1e-2, "lr": 1e-2}
    whole, half, rest = (Trainer(program) for _ in range(3))
    result = whole.train(dataset, journal=tmp_path / "whole", **run)

    class Killed(Exception):
        pass

    def kill(report: Any) -> None:
        if report.step == 4:
            raise Killed

    with pytest.raises(Killed):
        half.train(dataset, journal=tmp_path / "journal", on_step=kill, **run)
    resumed = rest.train(dataset, journal=tmp_path / "journal", resume=True, **run)
    assert (resumed.steps, resumed.resumed_steps, resumed.best_step) == (8, 5, result.best_step)
    assert (tmp_path / "journal").read_bytes() == (tmp_path / "whole").read_bytes()
    assert_same_adapter(rest, whole)


def test_an_adapter_is_saved_and_loaded(
    program: Path, tmp_path_factory: pytest.TempPathFactory, tmp_path: Path, rng: torch.Generator
) -> None:
    """Between programs of both kinds."""
    trainer, fresh, file = Trainer(program), Trainer(program), tmp_path / "adapter.safetensors"
    ours = Trainer(tiny_program(tmp_path_factory))
    seeds, coeffs = directions(QUERIES, rng)
    trainer.update(seeds.numpy(), coeffs.numpy())
    trainer.save_adapter(file)
    for other in (fresh, ours):
        other.load_adapter(file)
        assert_same_adapter(other, trainer)
    ours.save_adapter(tmp_path / "ours.safetensors")
    assert (tmp_path / "ours.safetensors").read_bytes() == file.read_bytes()


def test_wrong_inputs_are_refused(program: Path, rng: torch.Generator) -> None:
    trainer = Trainer(program)
    batch = program_batch(tiny_rows(rng, (9, 4, 12)), trainer.description)
    seeds, coeffs = (value.numpy() for value in directions(4, rng))
    update = seeds[:2], coeffs[:2]
    with Unchanged(trainer):
        for arguments, message in [
            ((*batch, seeds[:3], coeffs), r"seeds must have shape \(4,\), got \(3,\)"),
            ((*batch, seeds, coeffs.astype(np.float64)), "coeffs must be float32, got float64"),
            ((*batch, seeds, coeffs, seeds, coeffs[:2]), r"update_seeds must have shape \(2,\), got \(4,\)"),
            (
                (batch[0][:2], *batch[1:], seeds, coeffs),
                r"input_ids must have shape \(3, 11\), got \(2, 11\)",
            ),
        ]:
            with pytest.raises(ValueError, match=message):
                trainer.train_step(*arguments)
    assert trainer.train_step(*batch, seeds, coeffs, *update)[1] > 0


def change_input(method: str, number: int, **values: Any) -> Any:
    return lambda description: description["inputs"][method][number].update(values)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (entries(distribution="gaussian"), "lowering delegated needs distribution outer, got gaussian"),
        (entries(lowering="custom-op"), "lowering: expected delegated in a program of format 2, got"),
        (entries(format=1), "'(lowering|inputs)' is unknown"),
        (lambda description: description.pop("inputs"), "'inputs' is missing"),
        (entries(inputs=[]), "inputs: expected an object, got a list"),
        (lambda description: description["inputs"].pop("evaluate"), "inputs: 'evaluate' is missing"),
        (entries(queries=1, groups=2), r"inputs: train_step: input 6 must be u:.*q_proj.weight float32 \[2,"),
        (change_input("train_step", 4, name="lora_a"), "inputs: train_step: input 4 must be lora_b:.* got l"),
        (change_input("train_step", 9, shape=[4, 5]), r"inputs: train_step: input 9 must be v:.* \[4, 4\]"),
        (change_input("evaluate", 3, dtype="int8"), "inputs: evaluate: input 3 must be lora_b:.* float32"),
        (change_input("evaluate", 3, shape=4), "inputs: evaluate: shape: expected a list, got a whole"),
        (
            lambda description: description["inputs"]["train_step"].pop(),
            "inputs: train_step must have 11 inputs, got 10",
        ),
    ],
)  # fmt: skip
def test_a_description_that_lies(edit: Any, message: str, program: Path, tmp_path: Path) -> None:
    """Refused by both readers in the same words."""
    path = tmp_path / "model.pte"
    path.write_bytes(described(program, edit))
    with pytest.raises(ValueError, match=f"model.pte: description: {message}") as native:
        Trainer(path)
    with pytest.raises(ValueError) as here:
        read_description(path)
    assert str(native.value) == str(here.value)


def test_any_host_of_executorch_can_run_it(program: Path, rng: torch.Generator) -> None:
    """Without our trainer and our ops: noise of signs, and the coefficient in u."""
    trainer = Trainer(program)
    loaded = Runtime.get().load_program(program, verification=Verification.Minimal)
    batch = program_batch(tiny_rows(rng, (9, 4, 12)), trainer.description)
    seeds, coeffs = directions(4, rng)
    parameters = trainer.description.adapter.parameters
    lora_b = loaded.load_method("get_adapter").execute([])[len(parameters) :]
    u, v = [], []
    for p in parameters:
        z = torch.stack([ops.noise(list(p.lora_b), seed, p.stream, "outer") for seed in seeds])
        v.append(z[:, 0].contiguous())
        u.append(coeffs[:, None] * z[:, :, 0] * v[-1][:, :1])
    assert trainer.description.head is not None
    head = torch.zeros(len(CANDIDATES), trainer.description.head.shape[1])
    arguments = [*map(torch.from_numpy, batch), *lora_b, *u, *v, head]
    (losses,) = loaded.load_method("train_step").execute(arguments)
    np.testing.assert_allclose(
        losses, trainer.train_step(*batch, seeds.numpy(), coeffs.numpy())[0], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lowering": "inline"}, "lowering must be one of custom-op, delegated, got 'inline'"),
        ({"distribution": "rademacher"}, "lowering delegated needs distribution outer, got rademacher"),
    ],
)
def test_what_cannot_be_lowered_so(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    asked = {**DEFAULTS, "distribution": "outer", "lowering": "delegated", **options}
    with pytest.raises(ValueError, match=message):
        export_quietly(tiny_llama(1), tmp_path / "model.pte", targets=lora_config(), **asked)
