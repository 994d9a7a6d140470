"""What all groups of a step share is computed once, and the result is that of every group on its own."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import tiny
import torch
import transformers
from executorch.exir._serialize._program import deserialize_pte_binary
from executorch.exir.schema import DelegateCall, Tensor
from programs import (
    CANDIDATES,
    DEFAULTS,
    Unchanged,
    activated_rows,
    assert_same_adapter,
    eager_twin,
    export_quietly,
    no_update,
    program_batch,
    tiny_dataset,
    tiny_program,
)

import mobizo_kernels as mobizo
from mobizo_kernels.data import EncodedExample, collate, read_dataset
from mobizo_kernels.executorch import Description, StepReport, Trainer, export, read_description
from mobizo_kernels.executorch.description import DESCRIPTION, parse_description
from mobizo_kernels.executorch.training_methods import Evaluate, TrainStep
from mobizo_kernels.journal import replay
from mobizo_kernels.lora import adapter_layers, adapter_of
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.optim.seeds import query_seeds
from mobizo_kernels.zo import make_estimator

INVOCATION = [7, 8]
ACTIVATED: dict[str, Any] = {"layers_to_transform": [1, 2], "alora_invocation_tokens": INVOCATION}
TAIL = 4
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three layers, the lowest without an adapter."""
    return tiny_program(tmp_path_factory, layers=3, adapter=ACTIVATED, tail_length=TAIL)


def rows_of(
    rng: torch.Generator, count: int, *, before: int = DEFAULTS["max_length"] - TAIL
) -> list[EncodedExample]:
    """Rows with 0 to `before` tokens before the invocation, and tails of all lengths."""
    befores = torch.randint(before + 1, (count,), generator=rng).tolist()
    tails = torch.randint(len(INVOCATION), TAIL + 1, (count,), generator=rng).tolist()
    shapes = list(zip(befores, tails, strict=True))
    shapes[0], shapes[1 % count] = (before, TAIL), (0, 2)
    return activated_rows(rng, shapes, INVOCATION)


def losses_of(model: Any, rows: list[EncodedExample], seeds: torch.Tensor, coeffs: torch.Tensor) -> Any:
    """The losses of the eager model, which knows nothing of sharing."""
    loss = LabelledLoss(model, candidate_tokens=CANDIDATES)
    with adapter_of(model).directions.use(seeds, coeffs):
        return loss(collate(rows, 0), len(seeds))


def test_description(program: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    description = read_description(program)
    assert description.invocation_tokens == tuple(INVOCATION)
    assert (description.tail_length, description.min_length) == (TAIL, TAIL + 3)
    assert description.evaluation_rows == description.batch_size
    assert description.adapter.config["alora_invocation_tokens"] == INVOCATION


def test_delegates_own_their_weights(program: Path) -> None:
    """The delegates of prefix and tail, too: XNNPACK packs no weight that a delegate is given as an input."""
    plans = deserialize_pte_binary(program.read_bytes()).program.execution_plan
    for plan in (plan for plan in plans if plan.name in ("train_step", "evaluate")):
        calls = [instruction.instr_args for instruction in plan.chains[0].instructions]
        given = [i for call in calls if isinstance(call, DelegateCall) for i in call.args]
        assert given
        tensors = [plan.values[i].val for i in given if isinstance(plan.values[i].val, Tensor)]
        constants = [tensor.sizes for tensor in tensors if tensor.data_buffer_idx]
        assert all(len(sizes) < 2 or max(sizes) <= 8 for sizes in constants), constants


@pytest.mark.parametrize("before", [20, 3, 1, 0])
def test_steps_are_those_of_eager(before: int, program: Path, rng: torch.Generator) -> None:
    trainer, model = Trainer(program), eager_twin(3, **ACTIVATED)
    estimator, pending = make_estimator("two_sided", queries=2, eps=1e-2), no_update(trainer.description)
    for step in range(3):
        rows, seeds = rows_of(rng, 3, before=before), query_seeds(1, step, 2)
        groups = estimator.seeds(seeds), estimator.coeffs()
        batch = program_batch(rows, trainer.description)
        losses, _ = trainer.train_step(*batch, *(x.numpy() for x in groups), *pending)
        np.testing.assert_allclose(losses, losses_of(model, rows, *groups), **TOLERANCE)
        coeffs = 0.05 * torch.randn(2, generator=rng)
        for layer in adapter_layers(model).values():
            mobizo.ops.perturb_(layer.lora_b, seeds, coeffs, layer.stream)
        pending = seeds.numpy(), coeffs.numpy()
    trainer.update(*pending)
    assert_same_adapter(trainer, model)
    rows = rows_of(rng, 3, before=before)
    expected = LabelledLoss(model, candidate_tokens=CANDIDATES).logits(collate(rows, 0))
    got = trainer.evaluate_batch(*program_batch(rows, trainer.description)[:3])
    np.testing.assert_allclose(got[:, 0], expected, rtol=1e-4, atol=1e-4)


def test_many_directions(tmp_path_factory: pytest.TempPathFactory, rng: torch.Generator) -> None:
    """A step tries as many directions as the defaults of `mobizo train`."""
    queries = 32
    fixed: dict[str, Any] = {"queries": queries, "dynamic_length": False}
    program = tiny_program(tmp_path_factory, layers=3, adapter=ACTIVATED, tail_length=TAIL, **fixed)
    trainer, model, rows = Trainer(program), eager_twin(3, **ACTIVATED), rows_of(rng, 3)
    estimator = make_estimator("two_sided", queries=queries, eps=0.1)
    groups = estimator.seeds(query_seeds(1, 0, queries)), estimator.coeffs()
    batch, pending = program_batch(rows, trainer.description), no_update(trainer.description)
    losses, _ = trainer.train_step(*batch, *(x.numpy() for x in groups), *pending)
    assert len(np.unique(losses)) > queries
    np.testing.assert_allclose(losses, losses_of(model, rows, *groups), **TOLERANCE)


def test_what_is_padding_does_not_matter(program: Path, rng: torch.Generator) -> None:
    trainer = Trainer(program)
    ids, mask, *rest = program_batch(rows_of(rng, 3), trainer.description)
    directions = np.arange(4), np.float32([0.1, 0.2, -0.1, -0.2]), *no_update(trainer.description)
    expected, _ = trainer.train_step(ids, mask, *rest, *directions)
    assert (mask == 0).any(axis=0)[[0, -1]].all()
    got, _ = trainer.train_step(np.where(mask == 0, 17, ids), mask, *rest, *directions)
    assert (got == expected).all()


def test_the_native_loop_is_the_eager_loop(program: Path, tmp_path: Path, rng: torch.Generator) -> None:
    """The native data set lays rows out; evaluation is that of the eager model, too."""
    path = tiny_dataset(
        tmp_path / "data.safetensors", rng,
        **{"train": rows_of(rng, 16), "validation": rows_of(rng, 5), "test": rows_of(rng, 11)},
    )  # fmt: skip
    trainer, model, reports = Trainer(program), eager_twin(3, **ACTIVATED), list[StepReport]()
    trainer.train(
        path, steps=6, eps=1e-2, lr=2e-3, lr_schedule="constant", eval_every=0, keep="last",
        on_step=reports.append, journal=tmp_path / "journal",
    )  # fmt: skip
    zo = mobizo.ZerothOrder(
        model, queries=2, eps=1e-2, lr=2e-3, normalize=True, candidate_tokens=CANDIDATES
    )  # fmt: skip
    data = read_dataset(path)
    for step, report in enumerate(reports):
        order = [data.order[(step * 3 + i) % len(data.order)] for i in range(3)]
        expected = zo.step(collate([data.train[row] for row in order], 0))
        np.testing.assert_allclose(report.losses, expected.losses, **TOLERANCE)
    loss = LabelledLoss(model, candidate_tokens=CANDIDATES)
    scores = torch.cat([loss.logits(collate([row], 0)) for row in data.test])
    np.testing.assert_allclose(trainer.evaluate(path).scores, scores, rtol=1e-4, atol=1e-4)
    twin, other = eager_twin(3, **ACTIVATED), eager_twin(3, **{**ACTIVATED, "alora_invocation_tokens": [8]})
    assert replay(twin, tmp_path / "journal") == 6
    assert_same_adapter(trainer, twin)
    with pytest.raises(ValueError, match=r"invocation_tokens is \[7, 8\] there, but \[8\] here"):
        replay(other, tmp_path / "journal")


def no_invocation(rows: list[EncodedExample]) -> None:
    rows[3] = EncodedExample([10 + token % 20 for token in rows[3].input_ids[:-1]] + [5], 0, 1)


def long_tail(rows: list[EncodedExample]) -> None:
    rows[3] = EncodedExample([11, 7, 8, 11, 12, 13, 5], 0, 1)


def long_prefix(rows: list[EncodedExample]) -> None:
    rows[3] = EncodedExample([11] * 21 + [7, 8, 5], 0, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (no_invocation, "expected the invocation tokens [7,8] before its last token, got none"),
        (long_tail, "expected at most 4 tokens from the invocation tokens [7,8] to "),
        (long_prefix, "expected at most 20 tokens before the invocation tokens [7,8], got 21"),
    ],
)  # fmt: skip
def test_rows_that_do_not_fit(
    change: Callable[[list[EncodedExample]], None],
    message: str,
    program: Path,
    tmp_path: Path,
    rng: torch.Generator,
) -> None:
    rows = rows_of(rng, 16)
    change(rows)
    path, trainer = tmp_path / "data.safetensors", Trainer(program)
    tiny_dataset(path, rng, train=rows, validation=[], test=[])
    with Unchanged(trainer), pytest.raises(ValueError, match=re.escape(f"row 3 of train: {message}")):
        trainer.train(path, steps=2, eval_every=0, keep="last")


@pytest.mark.parametrize(
    ("adapter", "options", "message"),
    [
        ({}, {"tail_length": 3}, "tail_length must be None without LoraConfig.alora_invocation_tokens"),
        (ACTIVATED, {"tail_length": 1}, "tail_length must be at least 2, the invocation tokens, got 1"),
        (ACTIVATED, {"tail_length": 21}, "max_length must be above 24, got 24"),
    ],
)
def test_refused(adapter: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = eager_twin(3, **adapter)
    with pytest.raises(ValueError, match=message):
        export_quietly(model, tmp_path / "model.pte", **{**DEFAULTS, **options})
    assert not any(tmp_path.iterdir())


class Stopped(BaseException):
    """Where an export is to end."""


SIZES = {**tiny.SIZES, "num_hidden_layers": 3}
GROUPED = {**SIZES, "num_key_value_heads": 2}
OPT = {**{k: v for k, v in SIZES.items() if k != "intermediate_size"}, "ffn_dim": 48}
ARCHITECTURES: dict[str, tuple[transformers.PretrainedConfig, list[str]]] = {
    "llama": (transformers.LlamaConfig(**GROUPED), ["k_proj", "down_proj"]),
    "qwen3": (transformers.Qwen3Config(**GROUPED, head_dim=16), ["q_proj", "o_proj"]),
    "mistral": (transformers.MistralConfig(**GROUPED, sliding_window=24), ["v_proj"]),
    "gemma2": (
        transformers.Gemma2Config(**GROUPED, head_dim=8, query_pre_attn_scalar=8, attn_logit_softcapping=2.0),
        ["q_proj", "v_proj"],
    ),
    "gemma3": (
        transformers.Gemma3TextConfig(
            **GROUPED,
            head_dim=8,
            query_pre_attn_scalar=8,
            sliding_window=24,
            layer_types=["sliding_attention", "full_attention", "sliding_attention"],
        ),
        ["q_proj", "down_proj"],
    ),
    "qwen2-moe": (
        transformers.Qwen2MoeConfig(
            **GROUPED,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            shared_expert_intermediate_size=48,
        ),
        ["v_proj", "o_proj"],
    ),
    "gpt-neox": (transformers.GPTNeoXConfig(**SIZES), ["query_key_value", "dense_4h_to_h"]),
    "opt": (transformers.OPTConfig(**OPT, word_embed_proj_dim=32), ["k_proj", "fc1"]),
}


@pytest.mark.parametrize("layers", [None, [1, 2], [2]], ids=["all-layers", "two-layers", "one-layer"])
@pytest.mark.parametrize("invocation", [None, [7], INVOCATION], ids=["whole", "one-token", "two-tokens"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_graphs_of_all_architectures(
    architecture: str,
    invocation: list[int] | None,
    layers: list[int] | None,
    tmp_path: Path,
    rng: torch.Generator,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is traced, run as it is: 1 to 3 targets in a row, of the whole vocabulary."""
    config, targets = ARCHITECTURES[architecture]
    model = tiny.causal_lm(config)
    mobizo.wrap(
        model,
        peft.LoraConfig(
            r=5, target_modules=targets, layers_to_transform=layers, alora_invocation_tokens=invocation
        ),
    )
    for layer in adapter_layers(model).values():
        layer.lora_b.data.normal_(std=0.05, generator=rng)
    groups = torch.arange(4), 0.05 * torch.randn(4, generator=rng)
    found: dict[str, Any] = {}

    def stop(graph: Any, description: Description) -> None:
        assert description.tail_length == (None if invocation is None else len(invocation) + 2)
        shapes = [(9, 4), (0, 3), (4, 3)] if invocation is None else [(9, 2), (0, 1), (4, 3)]
        rows = []
        for (before, more), count in zip(shapes, (1, 1, 3), strict=True):
            inputs = more if invocation is None else len(invocation) + count - 1
            rows += activated_rows(rng, [(before, inputs)], invocation or [], targets=count, candidates=False)
        ids, mask, positions, wanted = (torch.from_numpy(x) for x in program_batch(rows, description))
        found["losses"] = TrainStep(graph)(ids, mask, positions, wanted, *groups)
        found["logits"], found["rows"] = Evaluate(graph)(ids, mask, positions), rows
        raise Stopped

    monkeypatch.setattr(export, "trace", stop)
    with pytest.raises(Stopped):
        export.export_training_program(
            model, tmp_path / "model.pte", queries=2, batch_size=3, max_length=24, targets_per_row=3
        )
    loss = LabelledLoss(model)
    with adapter_of(model).directions.use(*groups):
        expected = loss(collate(found["rows"], 0), 4)
    torch.testing.assert_close(found["losses"], expected, rtol=1e-5, atol=1e-5)
    for row, got in zip(found["rows"], found["logits"], strict=True):
        torch.testing.assert_close(
            got[: row.targets], loss.logits(collate([row], 0)), rtol=1e-4, atol=1e-4
        )  # fmt: skip


def test_the_whole_vocabulary_behind_an_invocation(
    tmp_path: Path, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The traced graph, where a layer finds the keys that it has kept, and rows of one token's targets."""
    model, found = eager_twin(2, alora_invocation_tokens=INVOCATION), dict[str, Any]()

    def stop(programs: dict[str, Any], constants: dict[str, str], **_: Any) -> None:
        found.update(programs, description=parse_description(constants[DESCRIPTION]))
        raise Stopped

    monkeypatch.setattr(export, "lower", stop)
    options = {**DEFAULTS, "candidate_tokens": None}
    with pytest.raises(Stopped):
        export.export_training_program(model, tmp_path / "model.pte", **options, dynamic_length=False)
    assert found["description"].head is None
    groups = torch.arange(4), 0.05 * torch.randn(4, generator=rng)
    rows = activated_rows(rng, [(22, 2), (3, 2), (0, 2)], INVOCATION, candidates=False)
    batch = program_batch(rows, found["description"])
    nothing = torch.zeros(2, dtype=torch.int64), torch.zeros(2)
    losses, _ = found["train_step"].module()(*map(torch.from_numpy, batch), *groups, *nothing)
    loss = LabelledLoss(model)
    with adapter_of(model).directions.use(*groups):
        torch.testing.assert_close(losses, loss(collate(rows, 0), 4), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("adapter", "linears"),
    [
        ({"layers_to_transform": [1, 2]}, 3 * 7),
        # Of the prefix's last layer nothing but its keys and values.
        (ACTIVATED, 3 * 7 + 2 * 7 + 2),
    ],
    ids=["whole", "activated"],
)
def test_nothing_is_computed_twice(
    adapter: dict[str, Any], linears: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}

    def stop(programs: dict[str, Any], constants: dict[str, str], **_: Any) -> None:
        found.update(programs, description=parse_description(constants[DESCRIPTION]))
        raise Stopped

    monkeypatch.setattr(export, "lower", stop)
    with pytest.raises(Stopped):
        export.export_training_program(eager_twin(3, **adapter), tmp_path / "model.pte", **DEFAULTS)
    nodes = [n for n in found["train_step"].run_decompositions({}).graph.nodes if n.op == "call_function"]
    products = [n for n in nodes if n.target is torch.ops.aten.linear.default]
    rotations = sum(n.args[1].meta["val"].shape == (8, 8) for n in products)
    means = sum(n.args[1].meta["val"].shape == (1, 32) for n in products)
    assert len(products) - rotations - means == linears + 1  # the LM head
    rows = [n.args[0].meta["val"].shape[0] for n in nodes if n.target is torch.ops.aten.bmm.default]
    assert rows.pop() == 1  # what is added to the LM head
    batch, heads = DEFAULTS["batch_size"], 2
    if adapter is ACTIVATED:  # the keys of a row are there once, whatever the groups
        assert rows == [batch * heads] * 2 * (2 + 3)
    else:
        assert rows == [batch * heads] * 2 + [4 * batch * heads] * 4
