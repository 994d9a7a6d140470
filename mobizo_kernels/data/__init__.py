"""Models, labelled texts and prompts for the command line: everything between a name and a batch."""

from mobizo_kernels.data.batches import collate, evaluation_batches, training_batches, training_order
from mobizo_kernels.data.datasets import Example, Splits
from mobizo_kernels.data.fingerprint import tokenizer_fingerprint
from mobizo_kernels.data.limits import check_max_length, check_rows
from mobizo_kernels.data.models import DTYPES, SMOLLM2, load_config, load_model, load_tokenizer
from mobizo_kernels.data.prompts import EncodedExample, PromptEncoder, parse_verbalizer, template_columns
from mobizo_kernels.data.tasks import ROTTEN_TOMATOES, TASKS, load_splits
from mobizo_kernels.data.token_cache import CachingEncoder
from mobizo_kernels.data.tokenized import (
    TokenizedDataset,
    examples_fingerprint,
    read_dataset,
    write_dataset,
)

__all__ = [
    "DTYPES",
    "ROTTEN_TOMATOES",
    "SMOLLM2",
    "TASKS",
    "CachingEncoder",
    "EncodedExample",
    "Example",
    "PromptEncoder",
    "Splits",
    "TokenizedDataset",
    "check_max_length",
    "check_rows",
    "collate",
    "evaluation_batches",
    "examples_fingerprint",
    "load_config",
    "load_model",
    "load_splits",
    "load_tokenizer",
    "parse_verbalizer",
    "read_dataset",
    "template_columns",
    "tokenizer_fingerprint",
    "training_batches",
    "training_order",
    "write_dataset",
]
