"""What a run does around its steps: which adapter is kept, when it ends, and how good it is."""

from mobizo_kernels.training.divergence import Steadiness
from mobizo_kernels.training.selection import Selection

__all__ = ["Selection", "Steadiness"]
