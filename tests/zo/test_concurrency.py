"""Two runs in one process at once, and workers that are forked from a process that has used the ops."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import tiny
import torch
from journals import OPTIONS, adapters, assert_same_adapters, wrapped
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedModel

from mobizo_kernels import ops
from mobizo_kernels.zo import ZerothOrder

RULES: tuple[dict[str, Any], ...] = ({"momentum": 0.9}, {"optimizer": "adam", "run_seed": 5})


@pytest.mark.usefixtures("threads")
def test_two_runs_in_two_threads(tmp_path: Path) -> None:
    """Of different rules and seeds: journals and adapters are those of two runs one after the other."""
    torch.set_num_threads(2)

    def run(name: str, rule: dict[str, Any]) -> Callable[[Barrier], PreTrainedModel]:
        """All but the steps, since models of transformers are made in one thread at a time."""
        model, rng = wrapped(), torch.Generator().manual_seed(7)
        zo = ZerothOrder(model, **{**OPTIONS, "eps": 0.02, **rule}, journal=tmp_path / name)

        def train(barrier: Barrier) -> PreTrainedModel:
            barrier.wait(60)
            for _ in range(5):
                zo.step(tiny.batch(rng))
            zo.close_journal()
            return model

        return train

    alone = [run(f"alone-{i}", rule)(Barrier(1)) for i, rule in enumerate(RULES)]
    trains, barrier = [run(f"both-{i}", rule) for i, rule in enumerate(RULES)], Barrier(len(RULES))
    with ThreadPoolExecutor(len(RULES)) as pool:
        both = list(pool.map(lambda train: train(barrier), trains))
    for i, (one, other) in enumerate(zip(alone, both, strict=True)):
        assert_same_adapters(other, adapters(one))
        assert (tmp_path / f"alone-{i}").read_bytes() == (tmp_path / f"both-{i}").read_bytes()


class Noise(Dataset[torch.Tensor]):
    """Directions, each drawn when it is asked for."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> torch.Tensor:
        return ops.noise([100_003], torch.tensor(index), 3)


def test_workers_of_a_data_loader() -> None:
    """They are forked when the pool of threads is there, and draw the same."""
    expected = torch.stack([Noise()[i] for i in range(4)])
    loader = DataLoader(Noise(), 2, num_workers=2, multiprocessing_context="fork", timeout=60)
    assert torch.equal(torch.cat(list(loader)), expected)
