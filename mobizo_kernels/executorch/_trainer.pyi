"""The compiled module: executorch_ops/trainer/app/python.cpp."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

def read_description(program: Path) -> str: ...

HAS_REGEX: bool
UNICODE_VERSION: str

class StreamDecoder:
    def push(self, id: int) -> str: ...
    def finish(self) -> str: ...

class NativeTokenizer:
    def __init__(self, path: Path) -> None: ...
    def encode(self, text: str | bytes, add_special_tokens: bool = True) -> NDArray[np.int64]: ...
    def decode(self, ids: Sequence[int] | NDArray[np.int64], skip_special_tokens: bool = True) -> str: ...
    def stream(self, skip_special_tokens: bool = True) -> StreamDecoder: ...
    def vocabulary_size(self) -> int: ...
    def token_to_id(self, token: str) -> int | None: ...
    def id_to_token(self, id: int) -> str | None: ...

def regress(
    hidden: NDArray[np.float32],
    outputs: NDArray[np.float32],
    labels: NDArray[np.int32],
    validation_hidden: NDArray[np.float32],
    validation_outputs: NDArray[np.float32],
    validation_labels: NDArray[np.int32],
    scale: float,
    soft_cap: float,
) -> tuple[
    float | None,
    list[tuple[float | None, float]],
    NDArray[np.float64],
    NDArray[np.float32],
    NDArray[np.float32],
]: ...
def choose(
    logits: NDArray[np.float32], temperature: float, top_k: int, top_p: float, seed: int, n: int
) -> int: ...

class Trainer:
    def __init__(self, program: Path, threads: int = 0) -> None: ...
    def description(self) -> str: ...
    def train(
        self,
        dataset: Path,
        *,
        steps: int,
        eps: float,
        lr: float,
        lr_schedule: str,
        normalize: bool,
        run_seed: int,
        journal: Path | None,
        sync_every: int,
        resume: bool,
        eval_every: int | None,
        validation_rows: int,
        keep: str,
        stop_unsteady: bool,
        objective: str,
        reward: Callable[[list[int], list[list[int]], list[int]], list[float]] | None,
        reward_shaping: str,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
        on_begin: Callable[[], object] | None,
        on_step: Callable[[dict[str, Any]], object] | None,
        on_evaluation: Callable[[dict[str, Any]], object] | None,
    ) -> dict[str, Any]: ...
    def read_out(self, dataset: Path, rows: int, validation_rows: int) -> dict[str, Any]: ...
    def evaluate(
        self, dataset: Path, split: str = "test", rows: int = 0, scores: bool = True
    ) -> dict[str, Any]: ...
    def tokenize(
        self,
        texts: Path,
        dataset: Path,
        *,
        tokenizer: Path,
        text_column: str,
        label_column: str,
        answers: str,
        steps: int,
        seed: int,
        train_rows: int | None,
        validation_rows: int | None,
        eval_rows: int | None,
        max_length: int | None,
    ) -> None: ...
    def train_step(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        target_positions: NDArray[np.int64],
        target_ids: NDArray[np.int64],
        seeds: NDArray[np.int64],
        coeffs: NDArray[np.float32],
        update_seeds: NDArray[np.int64] | None = None,
        update_coeffs: NDArray[np.float32] | None = None,
        update_lr: float = 0.0,
        update_decay: float = 1.0,
    ) -> tuple[NDArray[np.float32], float]: ...
    def evaluate_batch(
        self,
        input_ids: NDArray[np.int64],
        attention_mask: NDArray[np.int64],
        target_positions: NDArray[np.int64],
    ) -> NDArray[np.float32]: ...
    def update(
        self,
        update_seeds: NDArray[np.int64],
        update_coeffs: NDArray[np.float32],
        update_lr: float = 0.0,
        update_decay: float = 1.0,
    ) -> float: ...
    def generate(
        self,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        temperature: float,
        top_k: int,
        top_p: float,
        seed: int,
        on_token: Callable[[int], object] | None,
    ) -> dict[str, Any]: ...
    def replay(self, journal: Path, until: int | None = None) -> int: ...
    def adapter(self) -> dict[str, NDArray[np.float32]]: ...
    def save_adapter(self, path: Path) -> None: ...
    def load_adapter(self, path: Path) -> None: ...
