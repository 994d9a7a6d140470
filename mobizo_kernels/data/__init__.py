"""Models, labelled texts and prompts for the command line: everything between a name and a batch."""

from mobizo_kernels.data.batches import collate, training_batches
from mobizo_kernels.data.datasets import ROTTEN_TOMATOES, Example, Splits, load_splits
from mobizo_kernels.data.errors import InputError
from mobizo_kernels.data.models import DTYPES, SMOLLM2, load_model
from mobizo_kernels.data.prompts import EncodedExample, PromptEncoder, parse_verbalizer

__all__ = [
    "DTYPES",
    "ROTTEN_TOMATOES",
    "SMOLLM2",
    "EncodedExample",
    "Example",
    "InputError",
    "PromptEncoder",
    "Splits",
    "collate",
    "load_model",
    "load_splits",
    "parse_verbalizer",
    "training_batches",
]
