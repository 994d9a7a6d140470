"""ExecuTorch and the parts of this package that were built against it, each loaded when first needed."""

from __future__ import annotations

import ctypes
import importlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

_HERE = Path(__file__).parent
_OPS = "libmobizo_executorch.so"
_RUNTIME = (
    "libexecutorch",
    "libexecutorch_threadpool",
    "libexecutorch_kernels_optimized",
    "libexecutorch_backend_xnnpack",
)


@cache
def load_ops() -> None:
    """Register the ops with ExecuTorch's runtime in this process.

    Raises:
        ImportError: ExecuTorch is missing or of another version than the library was built for, or the
            library was not built.
    """
    installed = _check_version()
    package = importlib.import_module("executorch")
    # By absolute path and before ours, so that ours find the copies that everything else in the process uses.
    libraries = Path(next(iter(package.__path__)), "lib")
    try:
        for name in _RUNTIME:
            ctypes.CDLL(str(libraries / f"{name}.so"), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(_HERE / _OPS), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise ImportError(
            f"mobizo_kernels.executorch: {_OPS} does not load under executorch {installed}: {error}"
        ) from error


@cache
def load_trainer() -> ModuleType:
    """The compiled module of the native trainer. Raises ImportError as :func:`load_ops` does."""
    load_ops()
    return importlib.import_module("mobizo_kernels.executorch._trainer")


def _check_version() -> str:
    """The installed version of ExecuTorch, which has to be a release of the series that was built against."""
    try:
        installed = version("executorch")
    except PackageNotFoundError:
        raise ImportError(
            "mobizo_kernels.executorch: ExecuTorch is missing; pip install executorch==1.5.1"
        ) from None
    record = _HERE / "_built_for"
    if not record.is_file() or not (_HERE / _OPS).is_file():
        raise ImportError(
            "mobizo_kernels.executorch: this installation was built without ExecuTorch "
            "(MOBIZO_EXECUTORCH=0, or no executorch at build time); install the package again with it"
        )
    built_for = record.read_text().strip()
    if installed.split(".")[:2] != built_for.split(".")[:2]:
        raise ImportError(
            f"mobizo_kernels.executorch: built for executorch {built_for}, but {installed} is installed; "
            f"pip install executorch=={built_for}, or install this package again"
        )
    return installed
