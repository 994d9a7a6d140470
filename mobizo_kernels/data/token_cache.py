"""Encoded examples, kept in the cache directory: no text is tokenised twice in the same way.

One safetensors file for each list of examples and way of encoding it, in ``tokens/`` of the cache directory,
with the tensors of one split of a data set (docs/formats.md) and a checksum. Only their owner may read them.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mobizo_kernels.data.datasets import Example
from mobizo_kernels.data.prompts import EncodedExample, PromptEncoder
from mobizo_kernels.data.tokenized import example_arrays, examples_fingerprint, examples_of_arrays
from mobizo_kernels.errors import InputError
from mobizo_kernels.files.file import sorted_metadata, written_whole
from mobizo_kernels.models.loading import cache_directory

# Goes up when `PromptEncoder` makes other tokens of the same text.
_FORMAT = "mobizo-tokens-2"
_PART = "rows"

LEAST_CHARACTERS = 200_000
"""Fewer are encoded as fast as their key is computed, and not kept."""

MOST_BYTES = 256 << 20
"""What the directory may hold; the files longest unused go first."""


class CachingEncoder(PromptEncoder):
    """A `PromptEncoder` that finds in the cache directory what it has encoded before.

    A file that is damaged is made anew. A directory that cannot be written to costs the time of encoding.
    """

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        """Encode examples, keeping their order. Raises InputError as `PromptEncoder.encode`."""
        if sum(len(example.text) for example in examples) < LEAST_CHARACTERS:
            return super().encode(examples)
        try:
            path = cache_directory() / "tokens" / f"{_key(self, examples)}.safetensors"
            encoded = _read(path)
        except OSError:
            return super().encode(examples)
        if encoded is None:
            encoded = super().encode(examples)
            with suppress(OSError):
                _write(path, encoded)
                _forget_oldest(path.parent)
        return encoded


def _key(encoder: PromptEncoder, examples: Sequence[Example]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([_FORMAT, encoder.fingerprint]).encode())
    for example in examples:
        digest.update(json.dumps([example.text, example.label, example.columns]).encode())
    return digest.hexdigest()


def _read(path: Path) -> list[EncodedExample] | None:
    """The examples in the file, or None if there is none or it is damaged."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            checksum = (file.metadata() or {}).get("checksum")
            names: list[str] = list(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
        encoded = examples_of_arrays(tensors, _PART, path)
    except (SafetensorError, InputError, OSError, TypeError) as error:
        logging.getLogger(__name__).warning("%s is damaged and made anew (%s)", path, error)
        return None
    if checksum != examples_fingerprint(encoded):
        logging.getLogger(__name__).warning("%s is damaged and made anew (wrong checksum)", path)
        return None
    with suppress(OSError):
        os.utime(path)  # it is in use: others are forgotten first
    return encoded


def _write(path: Path, encoded: Sequence[EncodedExample]) -> None:
    tensors = {f"{_PART}.{name}": array for name, array in example_arrays(encoded).items()}
    content = save(tensors, {"format": _FORMAT, "checksum": examples_fingerprint(encoded)})
    path.parent.mkdir(
        mode=0o700, parents=True, exist_ok=True
    )  # tokens are the texts, which are the user's own
    with written_whole(path) as scratch:
        scratch.write_bytes(sorted_metadata(content))


def _forget_oldest(directory: Path) -> None:
    """Delete the files longest unused until the rest is within `MOST_BYTES`."""
    files = [(path, path.stat()) for path in directory.glob("*.safetensors")]
    files.sort(key=lambda entry: entry[1].st_mtime, reverse=True)
    total = 0
    for path, status in files:
        total += status.st_size
        if total > MOST_BYTES:
            path.unlink(missing_ok=True)
