"""The loss of many groups of rows, computed once where the groups are equal."""

from mobizo_kernels.conventions import IGNORED
from mobizo_kernels.loss.labelled_batch import LabelledBatch
from mobizo_kernels.loss.labelled_loss import LabelledLoss

__all__ = ["IGNORED", "LabelledBatch", "LabelledLoss"]
