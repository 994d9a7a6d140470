"""Data sets, adapters and journals that do not fit, and disks that are full: said plainly, nothing lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from programs import (
    Unchanged,
    other_program,
    program_bytes,
    tiny_dataset,
    tiny_rows,
    with_checksum,
)
from safetensors import safe_open
from safetensors.numpy import save_file

from mobizo_kernels.executorch import Trainer

STEPS: dict[str, Any] = {"steps": 6, "eval_every": 0, "keep": "last"}
Parts = tuple[dict[str, np.ndarray], dict[str, str]]  # of a safetensors file: tensors and metadata


def change(path: Path, edit: Callable[[dict[str, np.ndarray], dict[str, str]], object]) -> None:
    """Write a safetensors file anew after `edit` got its tensors and its metadata, without a checksum."""
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
        del metadata["checksum"]
        tensors = {name: file.get_tensor(name).copy() for name in file.keys()}  # noqa: SIM118
    edit(tensors, metadata)
    save_file(tensors, path, metadata)


def item(tensor: str, index: int, value: int) -> Callable[[Any, Any], None]:
    def edit(tensors: dict[str, np.ndarray], _: object) -> None:
        tensors[tensor][index] = value

    return edit


def entry(name: str, value: str) -> Callable[[Any, Any], None]:
    def edit(_: object, metadata: dict[str, str]) -> None:
        metadata[name] = value

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (entry("format", "mobizo-dataset-2"), "format mobizo-dataset-1, got 'mobizo-dataset-2'"),
        (entry("candidate_tokens", "[5, 8]"), "token 9 is to be predicted and is not a candidate"),
        (entry("candidate_tokens", "[5, 5]"), r"a different token for each of .*, got \[5,5\]"),
        (entry("candidate_tokens", "null"), "candidate_tokens must be those of the program"),
        (entry("candidate_tokens", "[5, 9"), "candidate_tokens"),
        (entry("labels", '{"no": 1}'), "labels"),
        (lambda tensors, _: tensors.pop("train.labels"), "train.labels"),
        (lambda tensors, _: tensors.update({"train.tokens": np.zeros(3)}), "tokens' must be I32, got F64"),
        (item("train.order", 3, 16), "train.order must name rows from 0 to 15, got 16"),
        (item("train.order", 3, -1), "train.order must name rows from 0 to 15, got -1"),
        (item("train.offsets", 0, 1), "train.offsets must go from 0"),
        (item("train.offsets", 4, 10**6), "train.offsets must not fall"),
        (item("test.targets", 2, 2), "row 2 of test: token .* is to be predicted and is not a candidate"),
        (item("test.targets", 2, 0), "row 2 of test"),
        (item("train.tokens", 5, 61), "token 61 is not in the vocabulary of 61"),
        (item("train.tokens", 5, -1), "of train: token ids must be from 0, got -1"),
        (lambda tensors, _: tensors.pop("test.labels"), "tensor 'test.labels' is missing"),
        (entry("checksum", "00000000"), "damaged, or changed since it was written: its checksum is 00000000"),
        (item("validation.labels", 1, 2), "row 1 of validation: its label must be -1 or below 2, got 2"),
    ],
)  # fmt: skip
def test_data_sets(edit: Any, message: str, trainer: Trainer, dataset: Path) -> None:
    change(dataset, edit)
    with Unchanged(trainer), pytest.raises(ValueError, match=f"data.safetensors.*{message}"):
        trainer.train(dataset, **STEPS)
    with Unchanged(trainer), pytest.raises(ValueError, match=f"data.safetensors.*{message}"):
        trainer.evaluate(dataset)


def test_a_row_that_is_too_long(trainer: Trainer, tmp_path: Path, rng: torch.Generator) -> None:
    rows = tiny_rows(rng, [9] * 7 + [26] + [9] * 8)
    path = tiny_dataset(tmp_path / "long.safetensors", rng, train=rows)
    message = "long.safetensors: row 7 of train: expected at most 24 tokens before the last, got 25"
    with Unchanged(trainer), pytest.raises(ValueError, match=message):
        trainer.train(path, **STEPS)


def test_a_split_without_rows(trainer: Trainer, tmp_path: Path, rng: torch.Generator) -> None:
    path = tiny_dataset(tmp_path / "data.safetensors", rng, validation=[], test=[])
    for split in ("validation", "test"):
        with pytest.raises(ValueError, match=f"no rows for {split}"):
            trainer.evaluate(path, split=split)
    with Unchanged(trainer), pytest.raises(ValueError, match="no rows for validation"):
        trainer.train(path, steps=3)
    with pytest.raises(ValueError, match="rest"):
        trainer.evaluate(path, split="rest")


def test_a_data_set_of_another_tokenizer(program: Path, dataset: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.pte"
    other = program_bytes(program).replace(b'"tokenizer": null', b'"tokenizer": "ab"')
    path.write_bytes(with_checksum(other))
    message = "of another tokenizer: the program expects ab, got '0123456789abcdef'"
    with pytest.raises(ValueError, match=message):
        Trainer(path).train(dataset, **STEPS)
    change(dataset, entry("tokenizer", "ab"))
    assert Trainer(path).train(dataset, **STEPS).steps == 6


def test_files_cut_short(trainer: Trainer, dataset: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter.safetensors"
    trainer.save_adapter(adapter)
    for path, use in ((dataset, trainer.evaluate), (adapter, trainer.load_adapter)):
        whole = path.read_bytes()
        for size in [*range(0, len(whole), len(whole) // 23), len(whole) - 1]:
            path.write_bytes(whole[:size])
            with Unchanged(trainer), pytest.raises(ValueError, match=path.name):
                use(path)
        path.unlink()
        with Unchanged(trainer), pytest.raises(OSError, match=path.name):
            use(path)


NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (entry("base_fingerprint", "00"), "the adapter is of another base model"),
        (entry("adapter_config", '{"lora_alpha": 5.5}'), "lora_alpha must be 8, .*, got 5.5"),
        (entry("adapter_config", "{"), "adapter_config: not JSON at byte 1"),
        (lambda tensors, _: tensors[NAME.format("A")].__imul__(2), "LoRA-A of .*q_proj.* is not that of"),
        (lambda tensors, _: tensors.pop(NAME.format("B")), "q_proj.lora_B.weight' is missing"),
        (lambda tensors, _: tensors.update(more=np.zeros(1, np.float32)), "'more' is not of the program"),
        (
            lambda tensors, _: tensors.update({NAME.format("B"): np.zeros((4, 32), np.float32)}),
            r"q_proj.lora_B.weight' must have shape \(32, 4\), got \(4, 32\)",
        ),
        (
            lambda tensors, _: tensors.update({NAME.format("B"): np.zeros((32, 4), np.float16)}),
            "q_proj.lora_B.weight' must be F32, got F16",
        ),
    ],
)  # fmt: skip
def test_adapters(edit: Any, message: str, trainer: Trainer, tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    trainer.save_adapter(path)
    with Unchanged(trainer):
        trainer.load_adapter(path)
    change(path, edit)
    with Unchanged(trainer), pytest.raises(ValueError, match=f"adapter.safetensors.*{message}"):
        trainer.load_adapter(path)


def test_adapter_of_another_program(
    trainer: Trainer, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A program of the same model, with another LoRA-A, as another seed gives it."""
    path = tmp_path / "adapter.safetensors"
    Trainer(other_program(tmp_path_factory)).save_adapter(path)
    with Unchanged(trainer), pytest.raises(ValueError, match="adapter.safetensors: LoRA-A of .*not that of"):
        trainer.load_adapter(path)
