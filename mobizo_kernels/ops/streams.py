"""Stream numbers: which noise belongs to which parameter."""

from __future__ import annotations

import hashlib


def parameter_stream(name: str) -> int:
    """The stream of a parameter, from its name in the un-wrapped model, e.g. "lm_head.weight".

    The first 8 bytes of blake2b(name), little endian, as a signed 64-bit integer: equal shapes never share
    noise, and the stream depends neither on the order of the parameters nor on which others are tuned.
    """
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)
