"""Optimizers inside ExecuTorch: eager's bits, no update that moves anything, journals of both engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import assert_same_bits, directions
from journals import RULES
from programs import (
    CANDIDATES,
    DEFAULTS,
    Unchanged,
    assert_same_adapter,
    eager_twin,
    lora_b_of,
    program_batch,
    tiny_dataset,
    tiny_program,
    tiny_rows,
)

import mobizo_kernels as mobizo
from mobizo_kernels.data import collate
from mobizo_kernels.executorch import Trainer, read_description
from mobizo_kernels.journal import JournalWriter, read_journal, replay
from mobizo_kernels.optim import StepRecord, query_seeds

QUERIES = DEFAULTS["queries"]
INSIDE = ("momentum and decay", "adam", "sign")
RUN: dict[str, Any] = {"steps": 9, "eval_every": 3, "lr": 0.02}
RECORD = 28 + 4 * QUERIES


@pytest.fixture(params=INSIDE)
def rule(request: pytest.FixtureRequest) -> dict[str, Any]:
    return RULES[request.param]


@pytest.fixture
def program(rule: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_program(tmp_path_factory, **rule, dynamic_length=False)


def arguments(seeds: torch.Tensor, record: StepRecord) -> dict[str, Any]:
    """An update as the methods of a trainer take it."""
    return {
        "update_seeds": seeds.numpy(),
        "update_coeffs": record.coeffs.numpy(),
        "update_lr": record.rate,
        "update_decay": record.decay,
    }


def random_update(rng: torch.Generator) -> dict[str, Any]:
    seeds, coeffs = directions(QUERIES, rng)
    return arguments(seeds, StepRecord(coeffs, 0.1, 0.75))


def random_batch(trainer: Trainer, rng: torch.Generator) -> tuple[Any, ...]:
    """Arguments of a train_step without an update."""
    seeds, coeffs = directions(trainer.description.groups, rng)
    return *program_batch(tiny_rows(rng, (9, 4, 12)), trainer.description), seeds.numpy(), coeffs.numpy()


def test_steps_are_those_of_eager(program: Path, rule: dict[str, Any], rng: torch.Generator) -> None:
    """Both sides go along one path: the updates that eager computed are given to the program."""
    trainer, model = Trainer(program), eager_twin()
    options = {"queries": QUERIES, "eps": 1e-2, "lr": 1e-2, "candidate_tokens": CANDIDATES}
    zo = mobizo.ZerothOrder(model, **options, **rule)
    assert trainer.description.optimizer == zo.optimizer.rule
    pending: dict[str, Any] = {}
    for step in range(4):
        zo.optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
        rows, before = tiny_rows(rng, (7, 9, 4)), zo.optimizer
        groups = (
            zo.estimator.seeds(query_seeds(0, step, QUERIES)).numpy(),
            zo.estimator.coeffs().numpy(),
        )
        losses, norm = trainer.train_step(*program_batch(rows, trainer.description), *groups, **pending)
        assert_same_adapter(trainer, model)
        rate, decay = zo.optimizer.rate(before.param_groups[0]), zo.optimizer.rule.decay(1e-2 / (1 + step))
        expected = zo.step(collate(rows, 0))
        np.testing.assert_allclose(losses, expected.losses, rtol=1e-5, atol=1e-5)
        assert (norm > 0) == (step > 0)
        coeffs = zo.optimizer.record(expected.projected_grads).coeffs
        pending = arguments(query_seeds(0, step, QUERIES), StepRecord(coeffs, rate, decay))
    trainer.update(**pending)
    assert_same_adapter(trainer, model)


def test_no_update_changes_nothing(program: Path, tmp_path: Path, rng: torch.Generator) -> None:
    """Not B, and not what the optimizer keeps: the next update is the same."""
    trainer, twin = Trainer(program), Trainer(program)
    updates = [random_update(rng) for _ in range(3)]
    batch = random_batch(trainer, rng)
    for update in updates:
        with Unchanged(trainer):
            first, norm = trainer.train_step(*batch)
            again, _ = trainer.train_step(*batch)
            trainer.evaluate(tiny_dataset(tmp_path / "data.safetensors", rng))
        assert norm == 0 and (first == again).all()
        before = lora_b_of(twin)
        assert twin.update(**update) == trainer.train_step(*batch, **update)[1] > 0
        assert_same_adapter(trainer, twin)
        assert any((now != old).any() for now, old in zip(lora_b_of(twin), before, strict=True))


def test_a_new_adapter_forgets_the_updates(program: Path, tmp_path: Path, rng: torch.Generator) -> None:
    trainer, fresh = Trainer(program), Trainer(program)
    file = tmp_path / "adapter.safetensors"
    trainer.save_adapter(file)
    first, second = random_update(rng), random_update(rng)
    trainer.update(**first)
    trainer.load_adapter(file)
    for one in (trainer, fresh):
        one.update(**second)
    assert_same_adapter(trainer, fresh)


def test_replay_gives_the_bits_on_both_engines(program: Path, dataset: Path, tmp_path: Path) -> None:
    journal, trainer = tmp_path / "journal", Trainer(program)
    trainer.train(dataset, **RUN, keep="last", journal=journal)
    for steps in (9, 4, 0):
        model, again = eager_twin(), Trainer(program)
        assert replay(model, journal, steps) == again.replay(journal, until=steps) == steps
        assert_same_adapter(again, model)
        if steps:
            with (
                Unchanged(again),
                pytest.raises(ValueError, match="lora_b is .* here, but the journal has"),
            ):
                again.replay(journal)  # not from where the run began
    assert_same_adapter(trainer, replayed(journal))
    again = Trainer(program)
    again.train(dataset, **{**RUN, "run_seed": 3})  # leaves nothing behind that the next run could see
    again.load_adapter(saved(Trainer(program), tmp_path))
    again.train(dataset, **RUN, keep="last")
    assert_same_adapter(again, trainer)


def replayed(journal: Path) -> Any:
    model = eager_twin()
    replay(model, journal)
    return model


def saved(trainer: Trainer, folder: Path) -> Path:
    trainer.save_adapter(folder / "adapter.safetensors")
    return folder / "adapter.safetensors"


def test_a_journal_of_eager(
    program: Path, rule: dict[str, Any], dataset: Path, tmp_path: Path, rng: torch.Generator
) -> None:
    """With steps that were skipped, whose place in the run is only told by their record."""
    path, model = tmp_path / "eager", eager_twin()
    zo = mobizo.ZerothOrder(
        model, queries=QUERIES, lr=0.01, candidate_tokens=CANDIDATES, journal=path, **rule
    )
    for step in range(6):
        poison = model.model.norm.register_forward_hook(lambda *args: args[2] * float("nan"))
        if step not in (0, 3):
            poison.remove()
        assert zo.step(collate(tiny_rows(rng, (7, 9, 4)), 0)).skipped == (step in (0, 3))
        poison.remove()
    trainer = Trainer(program)
    assert trainer.replay(path) == 6
    assert_same_adapter(trainer, model)


def test_resumed_from_any_length(program: Path, dataset: Path, tmp_path: Path) -> None:
    expected, path = Trainer(program), tmp_path / "journal"
    result = expected.train(dataset, **RUN, journal=path)
    content = path.read_bytes()
    for size in (0, 1, RECORD, 5 * RECORD + 3, 9 * RECORD):
        path.write_bytes(content[: len(content) - size])
        trainer = Trainer(program)
        again = trainer.train(dataset, **RUN, journal=path, resume=True)
        assert again.resumed_steps == 9 - -(-size // RECORD)
        assert again.evaluations == result.evaluations
        assert path.read_bytes() == content
        assert_same_adapter(trainer, expected)


def test_skipped_steps(program: Path, dataset: Path, tmp_path: Path, rng: torch.Generator) -> None:
    """The record of one that eager skipped, and steps that the native loop skips itself."""
    journal, trainer = tmp_path / "journal", Trainer(program)
    header = journal_header(program, dataset, tmp_path)
    records = []
    with JournalWriter.create(journal, header) as writer:
        for step in range(5):
            _, coeffs = directions(QUERIES, rng)
            record = StepRecord(coeffs, 0.1, 0.75, 0.5)
            records.append(StepRecord.skipped(QUERIES, float("inf")) if step % 2 == 0 else record)
            writer.append(step, records[-1])
    model, seen = eager_twin(), []
    for steps in range(6):
        again = Trainer(program)
        assert again.replay(journal, until=steps) == steps
        seen.append(lora_b_of(again))
    assert replay(model, journal) == 5
    assert_same_adapter(again, model)
    for step in range(5):
        same = all(torch.equal(a, b) for a, b in zip(seen[step], seen[step + 1], strict=True))
        assert same == (step % 2 == 0)
    again, file = Trainer(program), infinite(trainer, tmp_path)
    for one in (trainer, again):
        one.load_adapter(file)
    result = trainer.train(dataset, steps=3, eval_every=0, keep="last", journal=tmp_path / "skipped")
    recorded = read_journal(tmp_path / "skipped")[1]
    assert result.skipped_steps == 3
    assert not recorded.applied.any() and not recorded.losses.isfinite().any()
    again.replay(tmp_path / "skipped")
    assert_same_adapter(again, trainer)


def journal_header(program: Path, dataset: Path, folder: Path) -> Any:
    """The header of the journal of a run of the program."""
    Trainer(program).train(dataset, steps=1, eval_every=0, keep="last", journal=folder / "header")
    return read_journal(folder / "header")[0]


def infinite(trainer: Trainer, folder: Path) -> Path:
    """The adapter of a trainer with a B at which no loss is finite."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    file = saved(trainer, folder)
    with safe_open(file, framework="pt") as content:
        metadata, names = content.metadata(), list(content.keys())
        del metadata["checksum"]
        tensors = {name: content.get_tensor(name) for name in names}
    save_file({n: t + float("inf") if "lora_B" in n else t for n, t in tensors.items()}, file, metadata)
    return file


def test_journals_of_other_optimizers(
    program: Path, dataset: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    plain, trainer = Trainer(tiny_program(tmp_path_factory)), Trainer(program)
    for one, other, name in ((plain, trainer, "plain"), (trainer, plain, "own")):
        one.train(dataset, steps=2, eval_every=0, keep="last", journal=tmp_path / name)
        refused = pytest.raises(ValueError, match="optimizer is {.*} here, but")
        with Unchanged(other), refused:
            other.replay(tmp_path / name)
        with Unchanged(other), refused:
            other.train(dataset, steps=2, journal=tmp_path / name, resume=True)


def test_the_description_says_the_rule(program: Path, rule: dict[str, Any]) -> None:
    found = read_description(program).optimizer
    assert found.name == rule.get("optimizer", "sgd")
    assert found.weight_decay == rule.get("weight_decay", 0.0)


def test_any_host_of_executorch_can_run_it(program: Path, rule: dict[str, Any], rng: torch.Generator) -> None:
    """Without our trainer: all methods loaded, the update, then the step."""
    from executorch.runtime import Runtime, Verification

    trainer = Trainer(program)
    loaded = Runtime.get().load_program(program, verification=Verification.Minimal)
    methods = {name: loaded.load_method(name) for name in sorted(loaded.method_names)}
    batch = random_batch(trainer, rng)
    assert trainer.description.head is not None
    head = torch.zeros(2, trainer.description.head.shape[1])
    for _ in range(3):
        update = random_update(rng)
        inputs = [update["update_seeds"], update["update_coeffs"]]
        inputs += [np.full(1, update["update_lr"], np.float32)] * ("optimizer" in rule)
        inputs += [np.full(1, update["update_decay"], np.float32)] * bool(rule.get("weight_decay"))
        methods["update"].execute([torch.from_numpy(value) for value in inputs])
        (losses,) = methods["train_step"].execute([*map(torch.from_numpy, batch), head])
        np.testing.assert_allclose(losses, trainer.train_step(*batch, **update)[0], rtol=1e-6)
    tensors = methods["get_adapter"].execute([])
    for mine, other in zip(lora_b_of(trainer), tensors[len(tensors) // 2 :], strict=True):
        assert_same_bits(mine, other)
