"""Data sets that cannot be read out, and adapters of an LM head that do not fit a program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import CANDIDATES
from readout_tasks import HEAD_A, HEAD_B, Task, bits
from safetensors import safe_open
from safetensors.torch import save_file

from mobizo_kernels.data import EncodedExample
from mobizo_kernels.executorch import Trainer


def test_data_that_do_not_do(plain: Task, tmp_path: Path, rng: torch.Generator) -> None:
    trainer, path = Trainer(plain.program), tmp_path / "other.safetensors"
    no = [number for number in plain.in_turn if plain.train[number].label == 0]
    two = [row for row in plain.validation if row.label == 1]
    several = [*plain.validation, EncodedExample([20, 21, CANDIDATES[0], CANDIDATES[0]], 0, 2)]
    lost = [*plain.validation, EncodedExample([20, 21, CANDIDATES[0]], -1)]
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
