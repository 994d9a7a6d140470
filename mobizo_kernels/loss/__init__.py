"""The loss of many groups of rows, computed once where the groups are equal."""

from mobizo_kernels.loss.labelled_batch import LabelledBatch
from mobizo_kernels.loss.labelled_loss import LabelledLoss
from mobizo_kernels.loss.rows import IGNORED

__all__ = ["IGNORED", "LabelledBatch", "LabelledLoss"]
