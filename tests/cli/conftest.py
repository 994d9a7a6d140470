"""What several tests of commands read."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_texts import reviews, save_model, write_csv

from mobizo_kernels.data import Example


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and several data files, most of them bad."""
    directory = tmp_path_factory.mktemp("inputs")
    save_model(directory / "model")
    save_model(directory / "wider", hidden_size=64)
    save_model(directory / "few_positions", max_position_embeddings=8)
    save_model(directory / "small_vocabulary", vocab_size=280)
    write_csv(directory / "data.csv", reviews())
    write_csv(directory / "empty_text.csv", [*reviews(), Example(" ", "1")])
    write_csv(directory / "third_label.csv", [*reviews(), *(Example(f"middling {n}", "2") for n in range(9))])
    return directory
