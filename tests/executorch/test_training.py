"""Training inside ExecuTorch: the losses and the adapter of the eager path, whatever the loop, the number of
threads, or what else goes on in the process.
"""

from __future__ import annotations

import gc
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from crash import start_runner
from executorch.runtime import Runtime, Verification
from helpers import directions
from programs import (
    CANDIDATES,
    DEFAULTS,
    assert_same_adapter,
    eager_twin,
    lora_b_of,
    no_update,
    other_program,
    program_batch,
    tiny_program,
    tiny_rows,
)
from safetensors import safe_open
from safetensors.torch import save_file

import mobizo_kernels as mobizo
from mobizo_kernels.data import collate, read_dataset
from mobizo_kernels.executorch import StepReport, Trainer
from mobizo_kernels.journal import read_journal, replay
from mobizo_kernels.lora import adapter_layers
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.optim.seeds import query_seeds

TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
QUERIES = DEFAULTS["queries"]

# With the shortest and the longest input, and the first that is padded because no program takes it: 1 token.
LENGTHS = [(4, 4, 4), (25, 25, 25), (2, 2, 2), (25, 2, 14), (5, 4, 2), (24, 12, 18), (7, 9, 8)]


def zeroth_order(model: Any, **options: Any) -> mobizo.ZerothOrder:
    return mobizo.ZerothOrder(
        model, **{"queries": QUERIES, "eps": 1e-2, "lr": 1e-2, "candidate_tokens": CANDIDATES, **options}
    )


def update_of(step: int, rng: torch.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An update of some size, as the program takes it."""
    seeds, coeffs = directions(QUERIES, rng)
    return seeds.numpy(), coeffs.numpy()


def test_steps_are_those_of_eager(program: Path, rng: torch.Generator) -> None:
    """Both sides go along one path: the updates that eager computed are given to the program."""
    trainer, model = Trainer(program), eager_twin()
    zo = zeroth_order(model)
    pending = no_update(trainer.description)
    for step, lengths in enumerate(LENGTHS):
        rows = tiny_rows(rng, lengths)
        before = [layer.lora_b.detach().clone() for layer in adapter_layers(model).values()]
        expected = zo.step(collate(rows, 0))
        seeds = query_seeds(0, step, QUERIES)
        groups = zo.estimator.seeds(seeds).numpy(), zo.estimator.coeffs().numpy()
        losses, norm = trainer.train_step(*program_batch(rows, trainer.description), *groups, *pending)
        np.testing.assert_allclose(losses, expected.losses, **TOLERANCE)
        for mine, other in zip(lora_b_of(trainer), before, strict=True):
            assert torch.equal(mine, other)
        assert (norm > 0) == (step > 0)
        pending = seeds.numpy(), zo.optimizer.record(expected.projected_grads).coeffs.numpy()
    trainer.update(*pending)
    assert_same_adapter(trainer, model)


@pytest.mark.parametrize("normalize", [True, False])
def test_the_native_loop_is_the_eager_loop(
    normalize: bool, program: Path, dataset: Path, tmp_path: Path
) -> None:
    """Each side goes along its own path, so that what one rounds differently would add up."""
    data, steps, reports = read_dataset(dataset), 9, list[StepReport]()
    trainer = Trainer(program)
    settings = {"eps": 1e-2, "lr": 2e-3, "normalize": normalize, "run_seed": -5}
    trainer.train(
        dataset, steps=steps, lr_schedule="constant", eval_every=0, keep="last", on_step=reports.append,
        journal=tmp_path / "native", **settings,
    )  # fmt: skip
    model = eager_twin()
    zo = zeroth_order(model, **settings)
    for step in range(steps):
        order = [data.order[(step * 3 + i) % len(data.order)] for i in range(3)]
        expected = zo.step(collate([data.train[row] for row in order], 0))
        np.testing.assert_allclose(reports[step].losses, expected.losses, **TOLERANCE)
        assert reports[step].loss == pytest.approx(expected.loss, rel=1e-5)
        assert (reports[step].step, reports[step].lr, reports[step].skipped) == (step, 2e-3, False)
    for mine, layer in zip(lora_b_of(trainer), adapter_layers(model).values(), strict=True):
        assert layer.lora_b.abs().max() > 1e-4
        torch.testing.assert_close(mine, layer.lora_b.detach(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_coefficients_have_the_bits_of_eager(
    normalize: bool, dataset: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What the native trainer makes of its losses is what eager makes of the same ones."""
    program = tiny_program(tmp_path_factory, queries=7, estimator="centred")
    settings, reports = {"eps": 1e-2, "lr": 2e-3, "normalize": normalize}, list[StepReport]()
    Trainer(program).train(
        dataset, steps=6, lr_schedule="constant", eval_every=0, keep="last", on_step=reports.append,
        journal=tmp_path / "journal", **settings,
    )  # fmt: skip
    zo = zeroth_order(eager_twin(), **settings, queries=7, estimator="centred")
    header, records = read_journal(tmp_path / "journal")
    assert (header.estimator, header.normalize, len(records)) == ("centred", normalize, 6)
    for report, coeffs in zip(reports, records.coeffs, strict=True):
        losses = torch.tensor(report.losses)
        assert report.loss == pytest.approx(zo.estimator.loss(losses), rel=1e-6)
        assert torch.equal(coeffs, zo.optimizer.record(zo.estimator.projected_gradients(losses)).coeffs)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_replay_gives_the_bits_on_both_engines(
    schedule: str, program: Path, dataset: Path, tmp_path: Path
) -> None:
    journal, trainer = tmp_path / "journal", Trainer(program)
    trainer.train(dataset, steps=7, lr_schedule=schedule, eval_every=0, keep="last", journal=journal)
    model, again, half = eager_twin(), Trainer(program), Trainer(program)
    assert replay(model, journal) == again.replay(journal) == 7
    assert_same_adapter(trainer, model)
    assert_same_adapter(trainer, again)
    half_model = eager_twin()
    assert replay(half_model, journal, until=3) == half.replay(journal, until=3) == 3
    assert_same_adapter(half, half_model)


def test_the_best_adapter_is_kept(program: Path, dataset: Path, tmp_path: Path) -> None:
    journal, trainer, fresh = tmp_path / "journal", Trainer(program), Trainer(program)
    result = trainer.train(dataset, steps=8, eval_every=2, journal=journal)
    assert [validation.step for validation in result.evaluations] == [0, 2, 4, 6, 8]
    lowest = min(result.evaluations, key=lambda validation: validation.loss)
    best = next(validation for validation in result.evaluations if validation.step == result.best_step)
    assert best.step >= lowest.step
    fresh.replay(journal, until=best.step)
    assert_same_adapter(trainer, fresh)
    again = trainer.evaluate(dataset, split="validation")
    assert (again.loss, again.accuracy) == (best.loss, best.accuracy)


def test_evaluation_is_that_of_eager(program: Path, dataset: Path, rng: torch.Generator) -> None:
    trainer, model = Trainer(program), eager_twin()
    seeds, coeffs = update_of(0, rng)
    trainer.update(seeds, coeffs)
    for layer in adapter_layers(model).values():
        mobizo.ops.perturb_(layer.lora_b, torch.from_numpy(seeds), torch.from_numpy(coeffs), layer.stream)
    loss, rows = LabelledLoss(model, candidate_tokens=CANDIDATES), read_dataset(dataset).test
    expected = torch.cat([loss.logits(collate([row], 0)) for row in rows])
    got = trainer.evaluate(dataset)
    np.testing.assert_allclose(got.scores, expected, rtol=1e-4, atol=1e-4)
    assert got.labels.tolist() == [row.label for row in rows]
    right = (expected.argmax(1) == torch.tensor([row.label for row in rows])).double()
    assert got.accuracy == pytest.approx(right.mean().item())
    surprise = torch.nn.functional.cross_entropy(expected, torch.tensor([row.label for row in rows]))
    assert got.loss == pytest.approx(surprise.item(), rel=1e-5)


def random_step(trainer: Trainer, rng: torch.Generator) -> tuple[Any, ...]:
    """Arguments of a train_step without an update."""
    rows = tiny_rows(rng, (9, 4, 12))
    seeds, coeffs = directions(trainer.description.groups, rng)
    none = no_update(trainer.description)
    return *program_batch(rows, trainer.description), seeds.numpy(), coeffs.numpy(), *none


def test_state_is_shared_by_methods_and_lasts(program: Path, tmp_path: Path, rng: torch.Generator) -> None:
    trainer = Trainer(program)
    step, file = random_step(trainer, rng), tmp_path / "adapter.safetensors"
    first, norm = trainer.train_step(*step)
    assert norm == 0
    again, _ = trainer.train_step(*step)
    assert (again == first).all()
    trainer.save_adapter(file)
    norm = trainer.update(*update_of(0, rng))
    assert norm == pytest.approx(sum(b.square().sum().item() for b in lora_b_of(trainer)) ** 0.5, rel=1e-5)
    changed, _ = trainer.train_step(*step)
    assert (changed != first).any()
    trainer.train_step(*step[:-2], *update_of(1, rng))
    further, _ = trainer.train_step(*step)
    assert (further != changed).any()
    trainer.load_adapter(file)
    restored, _ = trainer.train_step(*step)
    assert (restored == first).all()


def test_programs_of_one_process_are_apart(
    program: Path, tmp_path_factory: pytest.TempPathFactory, rng: torch.Generator
) -> None:
    """Also one that is loaded when another has been at work, and one of another program."""
    one, two = Trainer(program), Trainer(program)
    step = random_step(one, rng)
    first, _ = one.train_step(*step)
    one.update(*update_of(0, rng))
    changed, _ = one.train_step(*step)
    late = Trainer(program)
    other = Trainer(other_program(tmp_path_factory))
    seeds, coeffs = directions(3, rng)
    other.update(seeds.numpy(), coeffs.numpy())
    for untouched in (two, late):
        assert not any(b.any() for b in lora_b_of(untouched))
        assert (untouched.train_step(*step)[0] == first).all()
    assert (one.train_step(*step)[0] == changed).all()


def test_any_host_of_executorch_can_run_it(program: Path, rng: torch.Generator) -> None:
    """Without our trainer: all methods loaded, then the first step."""
    trainer = Trainer(program)
    loaded = Runtime.get().load_program(program, verification=Verification.Minimal)
    methods = {name: loaded.load_method(name) for name in sorted(loaded.method_names)}
    update = update_of(0, rng)
    trainer.update(*update)
    methods["update"].execute([torch.from_numpy(value) for value in update])
    step = random_step(trainer, rng)
    assert trainer.description.head is not None
    head = torch.zeros(2, trainer.description.head.shape[1])
    losses, norm = methods["train_step"].execute([*map(torch.from_numpy, step), head])
    assert norm.shape == (1,)
    np.testing.assert_allclose(losses, trainer.train_step(*step)[0], rtol=1e-6)
    tensors = methods["get_adapter"].execute([])
    for mine, other in zip(lora_b_of(trainer), tensors[len(tensors) // 2 :], strict=True):
        assert torch.equal(mine, other)


def test_a_step_without_a_finite_loss_is_skipped(program: Path, dataset: Path, tmp_path: Path) -> None:
    file, journal, trainer = tmp_path / "adapter.safetensors", tmp_path / "journal", Trainer(program)
    trainer.save_adapter(file)
    with safe_open(file, framework="pt") as saved:
        metadata, tensors = saved.metadata(), {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118
        del metadata["checksum"]
    save_file({n: t + 1e38 if "lora_B" in n else t for n, t in tensors.items()}, file, metadata)
    trainer.load_adapter(file)
    before, reports = lora_b_of(trainer), list[StepReport]()
    result = trainer.train(
        dataset, steps=3, eval_every=0, keep="last", journal=journal, on_step=reports.append
    )  # fmt: skip
    assert result.skipped_steps == 3
    assert all(report.skipped and np.isnan(report.projected_gradients).all() for report in reports)
    recorded = read_journal(journal)[1]
    assert not recorded.applied.any() and not recorded.coeffs.any() and not recorded.losses.isfinite().any()
    for now, value in zip(lora_b_of(trainer), before, strict=True):
        assert torch.equal(now, value)


@pytest.mark.parametrize(("steps", "times"), [(7, None), (8, "1 or 2"), (14, "2"), (16, "2 or 3")])
def test_batches_that_are_used_again_are_told_of(
    steps: int, times: str | None, program: Path, dataset: Path, tmp_path: Path
) -> None:
    """By Python and by mobizo_runner; the 19 rows of the data set are the batches of 7 steps."""
    told = []
    if times is not None:
        told = [
            f"the data set has the batches of 7 steps: in a run of {steps} each is used {times} times; "
            f"tokenize for {steps} steps to have as many"
        ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        Trainer(program).train(dataset, steps=steps, eval_every=0, keep="last")
    assert [str(warning.message) for warning in caught] == told
    options = [f"--steps={steps}", "--eval-every=0", "--keep=last", "--start=zero"]
    adapter = tmp_path / "adapter.safetensors"
    runner = start_runner(["train", program, dataset, f"--adapter-out={adapter}", *options])
    errors = runner.communicate()[1]
    assert (runner.returncode, errors.splitlines()) == (0, [f"mobizo_runner: {line}" for line in told])


def test_number_of_threads(program: Path, dataset: Path, tmp_path: Path) -> None:
    gc.collect()  # trainers of other tests, which hold the pool while errors refer to them
    journals = []
    for threads in (1, 2):
        journals.append(tmp_path / str(threads))
        trainer = Trainer(program, threads=threads)
        trainer.train(dataset, steps=5, eval_every=0, keep="last", journal=journals[-1])
        del trainer
    assert journals[0].read_bytes() == journals[1].read_bytes()


def test_python_goes_on_while_it_trains(program: Path, dataset: Path) -> None:
    trainer, at_work, go_on = Trainer(program), threading.Event(), threading.Event()
    results: list[Any] = []

    def on_step(report: StepReport) -> None:
        at_work.set()
        assert go_on.wait(60)

    def run() -> None:
        results.append(trainer.train(dataset, steps=3, eval_every=0, keep="last", on_step=on_step))

    thread = threading.Thread(target=run)
    thread.start()
    assert at_work.wait(60)
    with pytest.raises(ValueError, match="this trainer is at work"):
        trainer.adapter()
    assert not any(b.any() for b in lora_b_of(Trainer(program)))
    go_on.set()
    thread.join(60)
    assert results[0].steps == 3
    assert any(b.any() for b in lora_b_of(trainer))
