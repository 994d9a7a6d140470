"""Safetensors files that the native trainer reads, too, read as it reads them.

executorch_ops/trainer/files/safetensors.cpp takes and refuses the same files: what the safetensors library
lets pass, such as a name that comes twice, would be one thing here and another there.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open

from mobizo_kernels.files import strict_json

CHECKSUM = "checksum"  # in the metadata

_MOST_HEADER_BYTES = 100_000_000  # as the safetensors library
_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype("V2"),
    "I64": np.dtype("<i8"), "I32": np.dtype("<i4"), "I16": np.dtype("<i2"), "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"), "U32": np.dtype("<u4"), "U16": np.dtype("<u2"), "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class Tensor:
    """A tensor as its file describes it.

    Attributes:
        dtype: as the file calls it, e.g. "F32"; `BF16` becomes a numpy dtype of two bytes without a meaning.
        shape: its sizes.
        data: its bytes, row-major.
    """

    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    @classmethod
    def of(cls, array: NDArray[Any]) -> Tensor:
        """The entry of a numpy array."""
        dtype = array.dtype.newbyteorder("<")
        content = np.ascontiguousarray(array, dtype)
        return cls(_NAMES[dtype], array.shape, memoryview(content.tobytes()))

    def array(self) -> NDArray[Any]:
        """A view that cannot be written to."""
        return np.frombuffer(self.data, _DTYPES[self.dtype]).reshape(self.shape)


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a file.

    Raises:
        OSError: if it cannot be read.
        ValueError: if it is not what the format says, to the last byte, or damaged: it has another checksum
            than its metadata name. A file that names none is of an earlier version. The text is the end of
            a sentence.
    """
    content = memoryview(path.read_bytes())
    size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or size > min(len(content) - 8, _MOST_HEADER_BYTES):
        raise ValueError(
            f"not a safetensors file, or cut short: a header of {size} bytes in a file of {len(content)}"
        )
    header = strict_json.loads_as_native(bytes(content[8 : 8 + size]))
    if not isinstance(header, dict):
        raise ValueError("its header is no object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are no strings")
    data = content[8 + size :]
    extents = {name: _extent(name, entry, len(data)) for name, entry in header.items()}
    ordered = sorted(extents.values())
    bounds = [(0, 0), *ordered, (len(data), len(data))]
    if any(before[1] != after[0] for before, after in pairwise(bounds)):
        raise ValueError(f"its tensors overlap or leave a gap in {len(data)} bytes")
    tensors = {
        name: Tensor(header[name]["dtype"], tuple(header[name]["shape"]), data[first:last])
        for name, (first, last) in extents.items()
    }
    if CHECKSUM in metadata and metadata[CHECKSUM] != (got := content_checksum(metadata, tensors)):
        raise ValueError(
            f"damaged, or changed since it was written: its checksum is {metadata[CHECKSUM]}, that of its "
            f"content {got}"
        )
    return metadata, tensors


def with_checksum(metadata: Mapping[str, str], tensors: Mapping[str, NDArray[Any]]) -> dict[str, str]:
    """The metadata of a file of these tensors, its checksum among them."""
    contents = {name: Tensor.of(array) for name, array in tensors.items()}
    return {**metadata, CHECKSUM: content_checksum(metadata, contents)}


def check_undamaged(path: Path) -> None:
    """Raise ValueError if a file names a checksum and has another; one that names none may be any.

    Raises:
        OSError, SafetensorError: if it cannot be read.
    """
    with safe_open(path, framework="np") as file:
        metadata = file.metadata() or {}
    if CHECKSUM in metadata:
        read_safetensors(path)


def content_checksum(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """crc32 of all that a file says but of the checksum itself, in 8 hexadecimal digits: docs/formats.md."""
    crc = 0
    for name, value in sorted(metadata.items()):
        if name != CHECKSUM:
            crc = zlib.crc32(f"{name}\0{value}\0".encode(), crc)
    for name, tensor in sorted(tensors.items()):
        sizes = ",".join(map(str, tensor.shape))
        crc = zlib.crc32(tensor.data, zlib.crc32(f"{name}\0{tensor.dtype}\0{sizes}\0".encode(), crc))
    return f"{crc:08x}"


def _extent(name: str, entry: Any, most: int) -> tuple[int, int]:
    """Where the data of a tensor begins and ends, its entry in the header being sound."""
    if not isinstance(entry, dict):
        raise ValueError(f"the entry of tensor {name!r} is no object")
    shape, offsets, dtype = (entry.get(key) for key in ("shape", "data_offsets", "dtype"))
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or any(type(number) is not int for number in numbers):
            raise ValueError(f"tensor {name!r} has no shape or no data_offsets in whole numbers")
    assert shape is not None and offsets is not None
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"tensor {name!r} is of the unknown dtype {dtype!r}")
    if len(offsets) != 2 or not 0 <= offsets[0] <= offsets[1] <= most:
        raise ValueError(f"tensor {name!r} has data_offsets {offsets} in {most} bytes")
    size = _DTYPES[dtype].itemsize
    for extent in shape:
        size *= extent
        if extent < 0 or size >= 2**63:
            raise ValueError(f"tensor {name!r} has the impossible shape {shape}")
    if size != offsets[1] - offsets[0]:
        raise ValueError(f"tensor {name!r} has {size} bytes by its shape {shape}, not by its data_offsets")
    return offsets[0], offsets[1]
