"""Loads the compiled extension, which registers `torch.ops.mobizo.*` and the CPU kernels."""

from __future__ import annotations

from pathlib import Path

import torch


def _load() -> None:
    candidates = sorted(Path(__file__).parent.glob("_C*.so"))
    if not candidates:
        raise ImportError(
            f"mobizo_kernels: the compiled extension is missing from {Path(__file__).parent}; "
            "install the package with `pip install .`"
        )
    try:
        torch.ops.load_library(str(candidates[0]))
    except OSError as error:
        raise ImportError(
            f"mobizo_kernels: {candidates[0].name} does not load under torch {torch.__version__} "
            f"(2.10 or later is needed): {error}"
        ) from error


def cpu_capability() -> str:
    """The instruction set that the CPU kernels run on: "avx512", "avx2", "neon" or "scalar".

    The best one of this machine, or the one that the environment variable MOBIZO_CPU names, read once.

    Raises:
        RuntimeError: MOBIZO_CPU names an instruction set that does not exist or that this machine lacks.
    """
    return torch.ops.mobizo.cpu_capability()


_load()
cpu_capability()
