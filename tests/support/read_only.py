"""What may not be written to, for root, too, whom the modes of files do not stop."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

# Of <linux/capability.h>: CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH.
_OVERRIDES = 1 << 1 | 1 << 2
# In front of a command: with the same user, but bound by modes.
AS_ANYBODY = 'exec setpriv --bounding-set=-dac_override,-dac_read_search --inh-caps=-all -- "$@"'


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


@contextmanager
def modes_count() -> Iterator[None]:
    """This thread is bound by the modes of files inside the block (Linux). Skips the test if it cannot be."""
    libc, header, sets = ctypes.CDLL(None), _Header(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capget(ctypes.byref(header), sets):
        pytest.skip("the system has no capabilities")
    before = sets[0]
    sets[0] &= ~_OVERRIDES  # of those in effect; those that may be come back
    libc.capset(ctypes.byref(header), sets)
    try:
        yield
    finally:
        sets[0] = before
        libc.capset(ctypes.byref(header), sets)


@contextmanager
def read_only(*paths: str | os.PathLike[str]) -> Iterator[None]:
    """Nobody may write to these files, or make or remove files in these directories, inside the block."""
    before = {path: os.stat(path).st_mode for path in paths}
    for path, mode in before.items():
        os.chmod(path, mode & ~0o222)
    try:
        yield
    finally:
        for path, mode in before.items():
            os.chmod(path, mode)
