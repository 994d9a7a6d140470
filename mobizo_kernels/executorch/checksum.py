"""The checksum at the end of a training program, without which the native trainer does not load it.

ExecuTorch takes no notice of what follows a program, so the file stays one that it loads; docs/formats.md
describes the bytes.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

MAGIC = b"MOBIZOPT"

_CRC = struct.Struct("<I")
_PIECE = 1 << 20


def append_checksum(path: Path) -> None:
    """Put the checksum of a program behind it. Raises OSError if the file cannot be read or written."""
    crc = 0
    with path.open("r+b") as file:
        while piece := file.read(_PIECE):
            crc = zlib.crc32(piece, crc)
        file.write(MAGIC + _CRC.pack(zlib.crc32(MAGIC, crc)))
