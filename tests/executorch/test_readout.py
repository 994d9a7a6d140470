"""A readout inside ExecuTorch: what eager makes of the same rows, the files it is in, and the runs that go on
from it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import tiny
import torch
import torch.nn.functional as F
from crash import run_to_end, start_runner
from helpers import assert_same_bits
from programs import (
    CANDIDATES,
    DEFAULTS,
    activated_rows,
    eager_twin,
    export_quietly,
    lora_config,
    program_batch,
    tiny_dataset,
    tiny_llama,
    tiny_program,
    tiny_rows,
)
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import Gemma2Config

from mobizo_kernels import load_adapter, save_adapter, wrap
from mobizo_kernels.data import EncodedExample, collate
from mobizo_kernels.executorch import EvaluationResult, Readout, Trainer
from mobizo_kernels.journal import read_journal, replay
from mobizo_kernels.journal.file import JournalFile
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
from mobizo_kernels.training.readout import numbers_in_turn

INVOCATION = [7, 8]
ACTIVATED: dict[str, Any] = {"layers_to_transform": [1, 2], "alora_invocation_tokens": INVOCATION}
HEAD_A, HEAD_B = (f"base_model.model.lm_head.lora_{factor}.weight" for factor in "AB")
PLAIN: dict[str, Any] = {}
DELEGATED: dict[str, Any] = {"distribution": "outer", "lowering": "delegated"}
SHARING: dict[str, Any] = {"layers": 3, "adapter": ACTIVATED, "tail_length": 4}
USED = 50  # rows that are read out


def telling_rows(rng: torch.Generator, activated: bool, count: int = 120) -> list[EncodedExample]:
    """Rows of which a token says the label, mostly."""
    if activated:
        shapes = [(3 + number % 17, 2 + number % 3) for number in range(count)]
        rows = activated_rows(rng, shapes, INVOCATION)
    else:
        rows = tiny_rows(rng, [5 + number % 20 for number in range(count)])
    for row in rows:
        if torch.rand((), generator=rng) < 0.9:
            row.input_ids[0 if activated else -2] = 20 + row.label
    return rows


class Task:
    """A program, rows for it in a file, and the eager model that it holds."""

    def __init__(self, program: Path, options: dict[str, Any], folder: Path, rng: torch.Generator) -> None:
        self.program, self.options = program, options
        rows = telling_rows(rng, options is SHARING)
        self.train, self.validation, self.test = rows[:70], rows[70:100], rows[100:]
        self.in_turn = list(numbers_in_turn(self.train, 3))
        self.dataset = self.write(folder / "data.safetensors", rng)
        self.rows = [self.train[number] for number in self.in_turn[:USED]]

    def write(self, path: Path, rng: torch.Generator, **changes: Any) -> Path:
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return tiny_dataset(path, rng, **{**parts, "in_turn": tuple(self.in_turn), **changes})

    def base(self) -> Any:
        return tiny_llama(self.options.get("layers", 1))

    def eager(self) -> Any:
        """With the readout that eager makes."""
        model = eager_twin(self.options.get("layers", 1), **self.options.get("adapter", {}))
        self.found = readout(LabelledLoss(model, candidate_tokens=CANDIDATES), self.rows, self.validation)
        return model

    def native(self) -> tuple[Trainer, Readout]:
        trainer = Trainer(self.program)
        return trainer, trainer.read_out(self.dataset, rows=USED)


@pytest.fixture(params=[PLAIN, DELEGATED, SHARING], ids=["ours", "delegated", "sharing"])
def task(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    tmp_path: Path,
    rng: torch.Generator,
) -> Task:
    return Task(tiny_program(tmp_path_factory, **request.param), request.param, tmp_path, rng)


@pytest.fixture
def plain(program: Path, tmp_path: Path, rng: torch.Generator) -> Task:
    return Task(program, PLAIN, tmp_path, rng)


def solution(adapter: dict[str, Any]) -> torch.Tensor:
    """What is added to the rows of the head, [V, H]."""
    return torch.from_numpy(adapter[HEAD_B]) @ torch.from_numpy(adapter[HEAD_A])


def balanced_loss(found: EvaluationResult) -> float:
    """With which the ridge is chosen: the rows of each label weigh the same."""
    scores = torch.from_numpy(found.scores).double()
    losses = F.cross_entropy(scores, torch.from_numpy(found.labels).long(), reduction="none")
    return float(np.mean([losses[found.labels == label].mean() for label in (0, 1)]))


def bits(trainer: Trainer) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in trainer.adapter().items()}


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


def test_the_runner(plain: Task, tmp_path: Path) -> None:
    """Its start is beside the journal: a run that goes on takes it, and so does a replay."""
    journal, start = tmp_path / "journal", tmp_path / "journal.start.safetensors"
    train: list[Any] = [
        "train",
        plain.program,
        plain.dataset,
        "--start",
        "readout",
        "--readout-rows",
        str(USED),
    ]
    train += ["--steps", "6", "--lr", "0.05", "--keep", "last", "--threads", "1", "--journal", journal]
    run = start_runner([*train, "--adapter-out", tmp_path / "whole.safetensors", "--json"])
    output, errors = run.communicate()
    assert run.returncode == 0, errors
    assert f"read out {USED} rows in " in output
    readout = json.loads(output.splitlines()[-1])["readout"]
    trainer, found = plain.native()
    assert (readout["ridge"], readout["rank"], readout["rows"]) == (found.ridge, 1, USED)
    assert dict(map(tuple, readout["losses"])).keys() == found.losses.keys()
    whole = (tmp_path / "whole.safetensors").read_bytes()
    trainer.save_adapter(tmp_path / "same.safetensors")
    assert start.read_bytes() == (tmp_path / "same.safetensors").read_bytes()
    trainer.train(plain.dataset, steps=6, lr=0.05, keep="last")
    trainer.save_adapter(tmp_path / "same.safetensors")
    assert whole == (tmp_path / "same.safetensors").read_bytes()

    journal.write_bytes(journal.read_bytes()[: -3 * (28 + 4 * DEFAULTS["queries"])])
    run_to_end([*train, "--resume", "--adapter-out", tmp_path / "resumed.safetensors", "--quiet"])
    assert (tmp_path / "resumed.safetensors").read_bytes() == whole
    replayed = ["replay", plain.program, journal, "--adapter-out", tmp_path / "replayed.safetensors"]
    for more in ([], ["--adapter-in", start]):
        run_to_end([*replayed, *more])
        assert (tmp_path / "replayed.safetensors").read_bytes() == whole
    content = start.read_bytes()
    again = start_runner([*replayed[:-1], start])
    assert "is the same file as the start of JOURNAL" in again.communicate()[1] and again.returncode == 2
    assert start.read_bytes() == content
    run_to_end(["evaluate", plain.program, plain.dataset, "--adapter", tmp_path / "whole.safetensors"])
    again = start_runner([*train[:-1], tmp_path / "none/journal", "--adapter-out", tmp_path / "other"])
    assert "--journal: " in again.communicate()[1] and again.returncode == 2  # before anything is read out
    for more, message in (
        ([], f"{journal} exists: name another journal, or resume"),
        (["--resume", "--adapter-out", start], "is the same file as the start of --journal"),
    ):
        again = start_runner([*train, "--adapter-out", tmp_path / "other.safetensors", *more])
        _, errors = again.communicate()
        assert again.returncode == 2 and message in errors and errors.count("\n") == 1
    start.unlink()  # of other rows than those of the run: refused, and not kept for the next try
    again = start_runner(
        [*train, "--resume", "--adapter-out", tmp_path / "other.safetensors", "--readout-rows", "10"]
    )
    assert again.communicate()[1].count("\n") == 1 and again.returncode == 2 and not start.exists()
    with contextlib.closing(JournalFile.open(journal)):  # another run, whose start is its own
        again = start_runner([*train, "--resume", "--adapter-out", tmp_path / "other.safetensors"])
        assert "another process is writing this file" in again.communicate()[1] and not start.exists()
    run_to_end([*train, "--resume", "--adapter-out", tmp_path / "resumed.safetensors", "--quiet"])
    assert (tmp_path / "resumed.safetensors").read_bytes() == whole
    assert start.read_bytes() == content  # made again, and kept
    start.write_bytes(b"damaged")
    again = start_runner([*train, "--resume", "--adapter-out", tmp_path / "other.safetensors"])
    _, errors = again.communicate()
    assert again.returncode == 2 and "journal.start.safetensors" in errors and errors.count("\n") == 1


def test_the_runner_begins_with_a_readout_where_it_can(
    plain: Task, tmp_path: Path, rng: torch.Generator
) -> None:
    """Unless it is given an adapter; what an earlier run with this journal began with is then gone."""
    journal, start = tmp_path / "journal", tmp_path / "journal.start.safetensors"
    train: list[Any] = ["train", plain.program, plain.dataset, "--steps", "2", "--keep", "last", "--json"]
    train += ["--journal", journal, "--no-stop-unsteady"]

    def outcome(name: str, *more: Any) -> tuple[dict[str, Any], str]:
        journal.unlink(missing_ok=True)
        run = start_runner([*train, "--adapter-out", tmp_path / name, *more])
        output, errors = run.communicate()
        assert run.returncode == 0, errors
        return json.loads(output.splitlines()[-1]), errors

    first, _ = outcome("first")
    assert first["readout"]["rank"] == 1 and start.exists()
    for more in (["--adapter-in", tmp_path / "first"], ["--start", "zero"]):
        start.touch()
        found, errors = outcome("second", *more)
        assert found["readout"] is None and not start.exists() and not errors
    one_label = tmp_path / "one_label.safetensors"
    plain.write(one_label, rng, validation=[row for row in plain.validation if row.label == 1])
    start.touch()
    train[2] = one_label
    found, errors = outcome("third")
    assert found["readout"] is None and not start.exists()
    assert errors.endswith("got [1]; the run begins without a readout\n") and errors.count("\n") == 1


def test_data_that_do_not_do(plain: Task, tmp_path: Path, rng: torch.Generator) -> None:
    trainer, path = Trainer(plain.program), tmp_path / "other.safetensors"
    no = [number for number in plain.in_turn if plain.train[number].label == 0]
    two = [row for row in plain.validation if row.label == 1]
    several = [*plain.validation, EncodedExample([20, 21, CANDIDATES[0], CANDIDATES[0]], 0, 2)]
    lost = [*plain.validation[:5], EncodedExample([20, 21, CANDIDATES[0]], -1)]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"in_turn": ()}, "does not say which rows to read out .train.in_turn.; make it again with mobizo"),
        ({"in_turn": tuple(no)}, r"train needs rows of every label from 0 to 1, got \[0\]"),
        ({"validation": two}, r"validation needs rows of every label from 0 to 1, got \[1\]"),
        ({"validation": []}, "the data set has no rows for validation"),
        ({"validation": lost}, r"validation needs rows of every label from 0 to 1, got \[-1,0,1\]"),
    ]
    for changes, message in cases:
        with pytest.raises(ValueError, match=message):
            trainer.read_out(plain.write(path, rng, **changes))
    with pytest.raises(ValueError, match="expected at most 1 tokens to predict, got 2"):
        trainer.read_out(plain.write(path, rng, validation=several))
    with pytest.raises(ValueError, match="readout_rows must be at least 1, got 0"):
        trainer.read_out(plain.dataset, rows=0)
    with pytest.raises(ValueError, match="validation_rows must be at least 1, got 0"):
        trainer.read_out(plain.dataset, validation_rows=0)
    assert HEAD_A not in trainer.adapter()
    swapped = [
        EncodedExample([*row.input_ids[:-1], CANDIDATES[1 - row.label]], 1 - row.label)
        for row in plain.validation
    ]
    found = trainer.read_out(plain.write(path, rng, validation=swapped))
    assert (found.ridge, found.rank, HEAD_A in trainer.adapter()) == (None, 0, False)


def test_adapters_that_do_not_fit(plain: Task, tmp_path: Path) -> None:
    trainer, _ = plain.native()
    path = tmp_path / "adapter.safetensors"
    trainer.save_adapter(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del metadata["checksum"]
    config = json.loads(metadata["adapter_config"])

    def edited(**values: Any) -> dict[str, str]:
        return {**metadata, "adapter_config": json.dumps({**config, **values})}

    more = tensors[HEAD_B].clone()
    more[4] = 1
    ranked = {HEAD_A: tensors[HEAD_A].repeat(3, 1), HEAD_B: tensors[HEAD_B].repeat(1, 3)}
    cases: list[tuple[dict[str, torch.Tensor], dict[str, str], str]] = [
        ({HEAD_B: more}, metadata, "LoRA-B of lm_head.weight must be zero but for the rows of the candidate"),
        (ranked, metadata, r"must have from 1 to 2 rows, got shape \(3, 32\)"),
        ({HEAD_B: more[:60].clone()}, metadata, r"must have shape \(61, 1\), got \(60, 1\)"),
        (
            {},
            edited(alpha_pattern={"^lm_head": 2}),
            "alpha_pattern must have 1 for '.lm_head', whose adapter",
        ),
        (
            {},
            edited(rank_pattern={"q_proj": 2, "^lm_head": 1}),
            "rank_pattern must be {}, that of the program",
        ),
    ]
    before = bits(trainer)
    for changes, metadata_of, message in cases:
        save_file({**tensors, **changes}, path, metadata_of)
        with pytest.raises(ValueError, match=message):
            trainer.load_adapter(path)
    trainer.save_peft(tmp_path / "peft")
    file_of = tmp_path / "peft" / "adapter_config.json"
    file_of.write_text(json.dumps({**config, "alpha_pattern": {"^lm_head": 2}}))
    with pytest.raises(
        ValueError, match="alpha_pattern must give '.lm_head' a scaling of 1, got 2 for rank 1"
    ):
        trainer.load_adapter(tmp_path / "peft")
    assert bits(trainer) == before


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
