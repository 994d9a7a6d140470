"""A readout inside ExecuTorch: what eager makes of the same rows, the files it is in, and the runs that go on
from it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import tiny
import torch
from helpers import assert_same_bits
from programs import CANDIDATES, DEFAULTS, export_quietly, lora_config, program_batch, tiny_program
from readout_tasks import (
    DELEGATED,
    HEAD_A,
    HEAD_B,
    PLAIN,
    SHARING,
    USED,
    Task,
    balanced_loss,
    bits,
    solution,
    telling_rows,
)
from transformers import Gemma2Config

from mobizo_kernels import load_adapter, save_adapter, wrap
from mobizo_kernels.data import collate
from mobizo_kernels.executorch import Trainer
from mobizo_kernels.journal import read_journal, replay
from mobizo_kernels.lora import (
    adapter_layers,
    adapter_of,
    device_from_peft,
    held_head,
    hold_head,
    save_device_adapter,
    tuned_layers,
)
from mobizo_kernels.loss import LabelledLoss
from mobizo_kernels.training import readout


@pytest.fixture(params=[PLAIN, DELEGATED, SHARING], ids=["ours", "delegated", "sharing"])
def task(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    rng: torch.Generator,
) -> Task:
    return Task(tiny_program(tmp_path_factory, **request.param), request.param, tmp_path, rng)


def test_it_is_that_of_eager(task: Task, rng: torch.Generator) -> None:
    """In what is added, in the losses that chose it, and in the steps and scores that come after."""
    trainer, found = task.native()
    model = task.eager()
    head = held_head(model)
    assert head is not None and (found.rank, found.rows) == (1, USED)
    assert found.ridge == pytest.approx(task.found.ridge) and len(found.losses) == len(task.found.losses)
    np.testing.assert_allclose(list(found.losses.values()), list(task.found.losses.values()), rtol=1e-4)
    expected = head.lora_b @ head.lora_a
    added = solution(trainer.adapter())
    torch.testing.assert_close(added, expected, rtol=0, atol=1e-4 * expected.abs().max().item())
    assert not np.delete(added.numpy(), CANDIDATES, axis=0).any()

    after = balanced_loss(trainer.evaluate(task.dataset, split="validation"))
    assert after == pytest.approx(found.losses[found.ridge], rel=1e-5) == min(found.losses.values())
    loss = LabelledLoss(model, candidate_tokens=CANDIDATES)
    rows, groups = task.test[:3], trainer.description.groups
    seeds, coeffs = torch.arange(groups), torch.linspace(-0.05, 0.05, groups)
    with adapter_of(model).directions.use(seeds, coeffs, trainer.description.distribution):
        losses = loss(collate(rows, 0), groups)
    batch = program_batch(rows, trainer.description)
    got, _ = trainer.train_step(*batch, seeds.numpy(), coeffs.numpy())
    np.testing.assert_allclose(got, losses, rtol=1e-4, atol=1e-5)


def test_its_files_are_those_of_one_adapter(task: Task, tmp_path: Path) -> None:
    """PEFT, eager and the trainer take them, and give the same logits."""
    trainer, _ = task.native()
    scores = trainer.evaluate(task.dataset).scores
    trainer.save_peft(tmp_path / "adapter")
    trainer.save_adapter(tmp_path / "device.safetensors")
    for source in ("adapter", "device.safetensors"):
        again = Trainer(task.program)
        again.load_adapter(tmp_path / source)
        assert bits(again) == bits(trainer)
        assert (again.evaluate(task.dataset).scores == scores).all()
    again.load_adapter(tmp_path / "device.safetensors")
    with pytest.raises(ValueError, match="the LM head has an adapter already, that of lm_head.weight"):
        again.read_out(task.dataset)

    model = load_adapter(task.base(), tmp_path / "adapter")
    hold_head(model)
    save_adapter(model, tmp_path / "eager")
    save_device_adapter(model, tmp_path / "eager.safetensors")
    device_from_peft(task.base(), tmp_path / "adapter", tmp_path / "converted.safetensors")
    for source in ("eager", "eager.safetensors", "converted.safetensors"):
        other = Trainer(task.program)
        other.load_adapter(tmp_path / source)
        assert bits(other) == bits(trainer)
    ours = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    theirs = json.loads((tmp_path / "eager" / "adapter_config.json").read_text())
    theirs["target_modules"] = sorted(theirs["target_modules"])
    assert ours == theirs and "lm_head" in ours["target_modules"]

    judge = peft.PeftModelForCausalLM.from_pretrained(task.base(), tmp_path / "adapter").eval()
    for row, wanted in zip(task.test, scores, strict=True):
        ids = torch.tensor([row.input_ids[:-1]])
        with torch.no_grad():
            logits = judge(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -1, list(CANDIDATES)]
        np.testing.assert_allclose(logits.numpy(), wanted, rtol=1e-4, atol=1e-4)


def test_runs_hold_it_and_replay(task: Task, tmp_path: Path) -> None:
    """Steps leave it alone; the journal replays from it in both engines, and from no other adapter."""
    trainer, _ = task.native()
    trainer.save_peft(tmp_path / "start")
    head = {name: bits(trainer)[name] for name in (HEAD_A, HEAD_B)}
    result = trainer.train(task.dataset, steps=5, lr=0.05, journal=tmp_path / "journal", keep="last")
    assert result.steps == 5
    assert all(bits(trainer)[name] == value for name, value in head.items())
    header, _ = read_journal(tmp_path / "journal")
    assert [parameter.name for parameter in header.parameters or ()] == [
        parameter.name for parameter in trainer.description.adapter.parameters
    ]

    again = Trainer(task.program)
    with pytest.raises(ValueError, match="lora_[ab]"):
        again.replay(tmp_path / "journal")
    again.load_adapter(tmp_path / "start")
    again.replay(tmp_path / "journal")
    assert bits(again) == bits(trainer)
    model = load_adapter(task.base(), tmp_path / "start")
    replay(model, tmp_path / "journal")
    layers = adapter_layers(model)
    for name, value in trainer.adapter().items():
        path, factor = name.removeprefix("base_model.model.").removesuffix(".weight").rsplit(".", 1)
        assert_same_bits(torch.from_numpy(value), getattr(layers[path], factor.lower()).detach())


def test_a_start_is_kept_once_the_journal_is_open(plain: Task, tmp_path: Path) -> None:
    trainer, _ = plain.native()
    journal, start, made = tmp_path / "journal", tmp_path / "start.safetensors", []

    def keep() -> None:
        assert read_journal(journal)[1].losses.numel() == 0 and not made
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        trainer.train(plain.dataset, steps=2, journal=journal, on_begin=keep, on_step=made.append)
    assert not made
    options: dict[str, Any] = {"steps": 2, "journal": journal, "resume": True, "on_step": made.append}
    trainer.train(plain.dataset, on_begin=lambda: start.write_text("kept"), **options)
    assert start.exists() and len(made) == 2


def test_a_run_ends_no_worse_than_it(plain: Task) -> None:
    trainer, found = plain.native()
    start = bits(trainer)
    result = trainer.train(plain.dataset, steps=4, lr=1e4, stop_unsteady=False, eval_every=1)
    assert result.best_step == 0 and bits(trainer) == start
    after = balanced_loss(trainer.evaluate(plain.dataset, split="validation"))
    assert after == pytest.approx(found.losses[found.ridge], rel=1e-5)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Path]]:
    """A model with a readout and a soft cap, and its program."""
    config = Gemma2Config(**tiny.SIZES, num_key_value_heads=2, head_dim=8, final_logit_softcapping=9.0)
    model = wrap(tiny.causal_lm(config), lora_config(use_rslora=True))
    rows = telling_rows(torch.Generator().manual_seed(5), activated=False)
    readout(LabelledLoss(model, candidate_tokens=CANDIDATES), rows[:60], rows[60:])
    path = tmp_path_factory.mktemp("exported") / "model.pte"
    export_quietly(model, path, **DEFAULTS, quantization="int8")
    yield model, path


def test_an_export_holds_it(exported: tuple[Any, Path], tmp_path: Path, rng: torch.Generator) -> None:
    """The program begins with it, tunes the others, and may be given another, over a head with a cap."""
    model, path = exported
    trainer, head = Trainer(path), held_head(model)
    assert head is not None and trainer.description.head is not None
    assert trainer.description.head.soft_cap == 9.0 and trainer.description.head.rank == head.rank == 2
    assert [parameter.name for parameter in trainer.description.adapter.parameters] == [
        f"{name}.weight" for name in tuned_layers(model)
    ]
    adapter = trainer.adapter()
    assert_same_bits(torch.from_numpy(adapter[HEAD_A]), head.lora_a)
    assert_same_bits(torch.from_numpy(adapter[HEAD_B]), head.lora_b.detach())
    trainer.save_adapter(tmp_path / "here.safetensors")
    save_device_adapter(model, tmp_path / "there.safetensors")
    assert (tmp_path / "here.safetensors").stat().st_size > 0
    other = Trainer(path)
    other.load_adapter(tmp_path / "there.safetensors")
    assert bits(other) == bits(trainer)

    task = Task(path, PLAIN, tmp_path, rng)
    with pytest.raises(ValueError, match="the LM head has an adapter already"):
        trainer.read_out(task.dataset)
    bare = wrap(tiny.causal_lm(model.config), lora_config(use_rslora=True))
    save_device_adapter(bare, tmp_path / "bare.safetensors")
    trainer.load_adapter(tmp_path / "bare.safetensors")
    assert HEAD_A not in trainer.adapter()
    found = trainer.read_out(task.dataset, rows=USED)
    after = balanced_loss(trainer.evaluate(task.dataset, split="validation"))
    assert found.rank == 2
    assert after == pytest.approx(found.losses[found.ridge], rel=1e-5) == min(found.losses.values())
    expected = readout(LabelledLoss(bare, candidate_tokens=CANDIDATES), task.rows, task.validation)
    assert found.losses[None] == pytest.approx(expected.losses[None], rel=0.02)  # int8 against float32
    assert after == pytest.approx(expected.losses[expected.ridge], rel=0.1)


def test_an_export_refuses_what_is_no_readout(exported: tuple[Any, Path], tmp_path: Path) -> None:
    model, _ = exported
    with pytest.raises(
        ValueError, match="an adapter of scaling 1 for the rows of the candidate tokens alone"
    ):
        export_quietly(model, tmp_path / "model.pte", **{**DEFAULTS, "candidate_tokens": (6, 9)})
    with pytest.raises(ValueError, match="candidate_tokens must be given for a model with a readout"):
        export_quietly(model, tmp_path / "model.pte", **{**DEFAULTS, "candidate_tokens": None})
