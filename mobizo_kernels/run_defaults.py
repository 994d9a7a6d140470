"""What a run does unless it is told otherwise: run_defaults.json, which the native build reads, too."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

LrSchedule = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class RunDefaults:
    """Defaults of `mobizo train`, `mobizo_runner train`, :func:`mobizo_kernels.training.fit` and
    :meth:`mobizo_kernels.executorch.Trainer.train`, which says what each is.
    """

    steps: int
    eps: float
    lr: float
    lr_schedule: LrSchedule
    normalize: bool
    run_seed: int
    sync_every: int
    resume: bool
    validation_rows: int
    readout_rows: int
    keep: str
    stop_unsteady: bool


RUN = RunDefaults(**json.loads(Path(__file__).with_name("run_defaults.json").read_text()))
