"""A process of its own for what calls libmobizo.so, whose ops the package's libraries have, too."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import c_interface
import executorch

import mobizo_kernels
from mobizo_kernels.executorch._library import _RUNTIME

PACKAGE = Path(mobizo_kernels.__file__).parent / "executorch"
LIBRARIES = Path(next(iter(executorch.__path__)), "lib")
FILES = c_interface.Files([str(LIBRARIES / f"{name}.so") for name in _RUNTIME], str(PACKAGE / "libmobizo.so"))

Found = TypeVar("Found")


def apart(function: Callable[..., Found], *arguments: Any, **options: Any) -> Found:
    """What a function of c_interface returns there. A crash of it is an error here."""
    plain = [str(argument) if isinstance(argument, Path) else argument for argument in arguments]
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(function, FILES, *plain, **options).result()
