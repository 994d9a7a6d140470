"""Training on the inference engine: export a model to a .pte that trains itself, and run it.

from mobizo_kernels.executorch import Trainer, export_training_program
export_training_program(model, "model.pte", queries=8, targets=["v_proj"])
trainer = Trainer("model.pte")
trainer.train("dataset.safetensors", steps=160)  # made by `mobizo tokenize`
trainer.save_peft("adapter/")

Importing this registers the package's ops with ExecuTorch; ImportError says why where that cannot be.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mobizo_kernels.executorch._library import load_ops
from mobizo_kernels.executorch.description import Description
from mobizo_kernels.executorch.objectives import TextReward
from mobizo_kernels.executorch.reports import (
    EvaluationResult,
    GenerationResult,
    Readout,
    StepReport,
    TrainResult,
    Validation,
)
from mobizo_kernels.executorch.trainer import Trainer, read_description

if TYPE_CHECKING:
    from mobizo_kernels.executorch.export import export_training_program

__all__ = [
    "Description",
    "EvaluationResult",
    "GenerationResult",
    "Readout",
    "StepReport",
    "TextReward",
    "TrainResult",
    "Trainer",
    "Validation",
    "export_training_program",
    "read_description",
]

load_ops()


def __getattr__(name: str) -> Any:
    """Export takes seconds to import, so it is imported when it is asked for."""
    if name == "export_training_program":
        from mobizo_kernels.executorch.export import export_training_program

        return export_training_program
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
