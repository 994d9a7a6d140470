"""Language models: what is loaded, what it has room for, and base weights of 8 and 4 bits."""

from mobizo_kernels.models.limits import check_max_length, check_rows
from mobizo_kernels.models.loading import DTYPES, SMOLLM2, load_config, load_model, load_tokenizer
from mobizo_kernels.models.quantization import quantize_base

__all__ = [
    "DTYPES",
    "SMOLLM2",
    "check_max_length",
    "check_rows",
    "load_config",
    "load_model",
    "load_tokenizer",
    "quantize_base",
]
