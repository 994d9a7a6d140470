"""The command line: `mobizo train`, `eval`, `generate`, `chat`, `export`, `replay` and more."""

import logging

# Where ExecuTorch is installed, so is torchao, and transformers imports it: torchao then warns that its GPU
# libraries do not load, and torch of how it registers types. bitsandbytes, which PEFT imports, warns of a
# kernel that it would fetch from the hub. To the user of a command that is noise.
_NOISE = {
    "torchao": "Failed to load ",
    "torch.utils._pytree": "register_constant() on Enum",
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",
}


def _is_news(record: logging.LogRecord) -> bool:
    return _NOISE[record.name] not in record.getMessage()


for _logger in _NOISE:
    logging.getLogger(_logger).addFilter(_is_news)
