"""The program `words`, which is compared with the numpy twin before anybody believes what it writes."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mobizo_kernels import reference
from mobizo_kernels.optim import query_seed

ORDERS = ("elements", "streams", "seeds", "queries", "outer")
STREAM = 0x5EED


def build(folder: Path) -> Path:
    """The compiled program. Raises RuntimeError if there is no C++ compiler."""
    compiler = shutil.which("c++")
    if compiler is None:
        raise RuntimeError("a C++ compiler is needed, and there is no c++")
    program = folder / "words"
    source = Path(__file__).with_name("words.cpp")
    subprocess.run([compiler, "-O3", "-march=native", "-std=c++17", source, "-o", program], check=True)
    return program


def written(program: Path, order: str, run_seed: int, groups: int) -> NDArray[np.uint32]:
    """The first words in `order`, uint32 [groups, 4]."""
    command = [program, order, str(run_seed), str(groups)]
    content = subprocess.run(command, capture_output=True, check=True).stdout
    return np.frombuffer(content, np.uint32).reshape(groups, 4)


def expected(order: str, run_seed: int, groups: int) -> NDArray[np.uint32]:
    """What the noise contract says that they are."""
    if order == "elements":
        return reference.philox(run_seed, STREAM, np.arange(groups))
    return np.stack([_group(order, run_seed, n) for n in range(groups)])


def _group(order: str, run_seed: int, n: int) -> NDArray[np.uint32]:
    if order == "streams":
        return reference.philox(run_seed, n, 0)
    if order == "seeds":
        return reference.philox(run_seed + n, STREAM, 0)
    seed = query_seed(run_seed, n)
    if order == "queries":
        return reference.philox(seed, STREAM, 0)
    signs = reference.noise([128, 200], seed, STREAM, "outer")
    bits = (np.diagonal(signs) < 0).astype(np.uint8)
    return np.packbits(bits, bitorder="little").view(np.uint32)


def checked_program() -> Path:
    """The program, in a folder of its own under the system's temporary one.

    Raises:
        RuntimeError: it cannot be built, or writes other words than the contract says.
    """
    program = build(Path(tempfile.mkdtemp(prefix="mobizo-words-")))
    for order in ORDERS:
        if not np.array_equal(written(program, order, 42, 50), expected(order, 42, 50)):
            raise RuntimeError(f"words {order}: they are not those of the noise contract")
    return program
