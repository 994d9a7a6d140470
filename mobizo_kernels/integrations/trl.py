"""`trl.SFTTrainer` without gradients; needs the extra `mobizo-kernels[trl]`."""

from __future__ import annotations

from dataclasses import dataclass

from mobizo_kernels.integrations.arguments import ZOArguments
from mobizo_kernels.integrations.extras import of_extra
from mobizo_kernels.integrations.trainer import ZOTrainerMixin

with of_extra("trl"):
    from trl import SFTConfig, SFTTrainer


@dataclass
class ZOSFTConfig(ZOArguments, SFTConfig):
    """`trl.SFTConfig` and :class:`ZOArguments` in one."""


class ZOSFTTrainer(ZOTrainerMixin, SFTTrainer):
    """`trl.SFTTrainer` without gradients, see :class:`ZOTrainerMixin`. Its data sets, chat templates,
    `assistant_only_loss` and packing stay; its training metrics beside the loss do not.
    """
