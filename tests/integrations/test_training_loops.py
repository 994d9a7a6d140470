"""Loops of others around a step: torch's, accelerate's, and the shortest Trainer that one could write."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from helpers import assert_same_bits
from peft import LoraConfig
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import mobizo_kernels as mobizo
from mobizo_kernels.lora import adapter_layers

LORA = LoraConfig(r=3, lora_alpha=6, target_modules=["q_proj", "v_proj"])


@pytest.fixture(autouse=True)
def accelerators() -> Iterator[None]:
    """Each test gets an accelerator of its own, whose precision is the process's."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def wrapped() -> Any:
    return mobizo.wrap(tiny.llama(), LORA)


def rows(rng: torch.Generator) -> list[dict[str, torch.Tensor]]:
    batch = tiny.batch(rng, (7, 5, 9, 8))
    return [{name: column[row] for name, column in batch.items()} for row in range(4)]


def adapter(model: Any) -> list[torch.Tensor]:
    return [layer.lora_b.clone() for layer in adapter_layers(model).values()]


def by_hand(data: list[dict[str, torch.Tensor]]) -> list[torch.Tensor]:
    model = wrapped()
    zo = mobizo.ZerothOrder(model, lr=0.1)
    for batch in DataLoader(data, batch_size=2):
        zo.step(batch)
    return adapter(model)


def assert_equal(got: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        assert_same_bits(one, other)


@pytest.mark.parametrize("first", ["step", "prepare"])
def test_accelerate(first: str, rng: torch.Generator) -> None:
    data, model, accelerator = rows(rng), wrapped(), Accelerator(cpu=True)
    loader = DataLoader(data, batch_size=2)
    if first == "step":
        zo = mobizo.ZerothOrder(model, lr=0.1)
        model, optimizer, loader = accelerator.prepare(model, zo.optimizer, loader)
    else:
        model, loader = accelerator.prepare(model, loader)
        zo = mobizo.ZerothOrder(model, lr=0.1)
        optimizer = accelerator.prepare(zo.optimizer)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    for batch in loader:
        zo.step(batch)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    assert_equal(adapter(zo.model), by_hand(data))


def test_mixed_precision_of_accelerate(rng: torch.Generator) -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model = accelerator.prepare(wrapped())
    with pytest.raises(ValueError, match=r"prepared for mixed precision: .*with accelerator.autocast\(\):"):
        mobizo.ZerothOrder(model)
    batch = next(iter(DataLoader(rows(rng), batch_size=2)))
    with accelerator.autocast():
        half = mobizo.ZerothOrder(model).step(batch).loss
    whole = mobizo.ZerothOrder(wrapped()).step(batch).loss
    assert half != whole and half == pytest.approx(whole, rel=2e-2)


def test_the_shortest_trainer(tmp_path: Path, rng: torch.Generator) -> None:
    class Shortest(Trainer):
        def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
            self.zo = mobizo.ZerothOrder(self.model, lr=0.1)
            self.optimizer = self.zo.optimizer
            return self.optimizer

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
            return torch.tensor(self.zo.step(inputs).loss)

    data, model = rows(rng), wrapped()
    args = TrainingArguments(
        str(tmp_path), num_train_epochs=1, per_device_train_batch_size=2, use_cpu=True, report_to=[],
        save_strategy="no", lr_scheduler_type="constant", disable_tqdm=True,
        train_sampling_strategy="sequential",
    )  # fmt: skip
    Shortest(model, args, train_dataset=data).train()
    assert_equal(adapter(model), by_hand(data))


def test_a_step_that_nothing_came_before() -> None:
    zo = mobizo.ZerothOrder(wrapped())
    with pytest.raises(
        RuntimeError, match=r"ZOSGD.step: no gradient .* call ZerothOrder.step\(batch\) where"
    ):
        zo.optimizer.step()


def test_a_step_counts_once(rng: torch.Generator) -> None:
    zo = mobizo.ZerothOrder(wrapped())
    zo.step(tiny.batch(rng))
    zo.optimizer.step()
    with pytest.raises(RuntimeError):
        zo.optimizer.step()


def test_several_devices_or_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ValueError, match="one device in one process, got DataParallel: give the model inside"
    ):
        mobizo.ZerothOrder(torch.nn.DataParallel(wrapped()))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ValueError, match="process_group must be given where there are 2 processes"):
        mobizo.ZerothOrder(wrapped())


def test_a_model_compiled_too_late(rng: torch.Generator) -> None:
    model = wrapped()
    zo = mobizo.ZerothOrder(model)
    model.compile()
    with pytest.raises(ValueError, match=r"model.compile\(\) must come before ZerothOrder, or compile=True"):
        zo.step(tiny.batch(rng))
    assert zo.steps == 0
    assert mobizo.ZerothOrder(model).loss.compiles
