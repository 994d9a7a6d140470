"""`transformers.Trainer` without gradients: see docs/trainer.md."""

from mobizo_kernels.integrations.arguments import ZOArguments, ZOConfig
from mobizo_kernels.integrations.trainer import ZOTrainer, ZOTrainerMixin

__all__ = ["ZOArguments", "ZOConfig", "ZOTrainer", "ZOTrainerMixin"]
