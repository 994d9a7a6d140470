"""Texts that a model writes: many prompts at once, and many perturbed models of the same prompts."""

from mobizo_kernels.generation.generator import TextGenerator
from mobizo_kernels.generation.sampling import Sampling

__all__ = ["Sampling", "TextGenerator"]
