"""A data set in tokens, as one file that a training program without a tokenizer can read.

docs/formats.md describes the file byte by byte.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from mobizo_kernels.data.prompts import EncodedExample
from mobizo_kernels.errors import InputError, first_line
from mobizo_kernels.files import strict_json
from mobizo_kernels.files.file import sorted_metadata, written_whole
from mobizo_kernels.files.safetensors import read_safetensors, with_checksum

FORMAT = "mobizo-dataset-1"
SPLITS = ("train", "validation", "test")

_ARRAYS = {"tokens": np.int32, "offsets": np.int64, "targets": np.int32, "labels": np.int32}
_ORDER = "train.order"
_IN_TURN = "train.in_turn"  # which a file need not have
_TENSORS = {_ORDER, _IN_TURN, *(f"{split}.{name}" for split in SPLITS for name in _ARRAYS)}


@dataclass(frozen=True)
class TokenizedDataset:
    """Encoded examples in three splits, and what has to be known to use them.

    Attributes:
        train: at least one example.
        validation: may be empty.
        test: may be empty.
        order: rows of `train` in the order in which steps take them: step t of batch size B takes
            order[(t * B + i) % len(order)] for i < B.
        labels: names; `EncodedExample.label` is an index of them.
        candidate_tokens: the token of each label's word, or None if the answers are free text.
        tokenizer: :func:`tokenizer_fingerprint` of the tokenizer.
        template: the prompt, for people.
        source: where the texts came from, for people.
        in_turn: different rows of `train`, of which a readout takes the first: by chance, one of each label
            in turn; empty if none is to be made.
    """

    train: list[EncodedExample]
    validation: list[EncodedExample]
    test: list[EncodedExample]
    order: list[int]
    labels: tuple[str, ...]
    candidate_tokens: tuple[int, ...] | None
    tokenizer: str
    template: str = ""
    source: str = ""
    in_turn: tuple[int, ...] = ()


def write_dataset(path: str | os.PathLike[str], dataset: TokenizedDataset) -> None:
    """Write a data set to the file `path`, whole or not at all; a file that is there is replaced.

    Raises:
        InputError: an example, the order or the candidate tokens contradict each other.
        OSError: the file cannot be written.
    """
    path = Path(path)
    _check(dataset, path)
    tensors = {
        f"{split}.{name}": array
        for split in SPLITS
        for name, array in example_arrays(getattr(dataset, split)).items()
    }
    tensors[_ORDER] = np.array(dataset.order, np.int32)
    if dataset.in_turn:
        tensors[_IN_TURN] = np.array(dataset.in_turn, np.int32)
    metadata = {
        "format": FORMAT,
        "tokenizer": dataset.tokenizer,
        "labels": json.dumps(dataset.labels),
        "candidate_tokens": json.dumps(dataset.candidate_tokens),
        "template": dataset.template,
        "source": dataset.source,
    }
    with written_whole(path) as scratch:
        scratch.write_bytes(sorted_metadata(save(tensors, with_checksum(metadata, tensors))))


def read_dataset(path: str | os.PathLike[str]) -> TokenizedDataset:
    """Read what :func:`write_dataset` wrote.

    Raises:
        InputError: naming the file and the tensor or entry, if there is no such file, it is no data set, it
            is damaged, or its parts contradict each other.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"data set: there is no file {str(path)!r}")
    try:
        metadata, contents = read_safetensors(path)
        tensors = {name: contents[name].array() for name in _TENSORS & contents.keys()}
    except (ValueError, OSError) as error:
        raise InputError(f"data set {path} cannot be read ({first_line(error)})") from error
    if metadata.get("format") != FORMAT:
        got = metadata.get("format")
        raise InputError(f"data set {path}: expected format {FORMAT!r}, got {got!r}")
    labels = _list(metadata, "labels", str, path)
    candidates = None
    if metadata.get("candidate_tokens", "").strip(" \t\n\r") != "null":
        candidates = tuple(_list(metadata, "candidate_tokens", int, path))
    splits = {split: examples_of_arrays(tensors, split, path) for split in SPLITS}
    dataset = TokenizedDataset(
        **splits,
        order=_tensor(tensors, _ORDER, np.int32, path).tolist(),
        labels=tuple(labels),
        candidate_tokens=candidates,
        tokenizer=metadata.get("tokenizer", ""),
        template=metadata.get("template", ""),
        source=metadata.get("source", ""),
        in_turn=tuple(_tensor(tensors, _IN_TURN, np.int32, path).tolist() if _IN_TURN in tensors else ()),
    )
    _check(dataset, path)
    return dataset


def examples_fingerprint(examples: Sequence[EncodedExample]) -> str:
    """blake2b (16 bytes, in hex) over the tokens, targets and labels of examples in their order."""
    digest = hashlib.blake2b(digest_size=16)
    for array in example_arrays(examples).values():
        digest.update(array.astype(array.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def example_arrays(examples: Sequence[EncodedExample]) -> dict[str, NDArray[Any]]:
    """tokens int32 [n], offsets int64 [rows + 1], targets and labels int32 [rows]: see docs/formats.md."""
    lengths = [len(example.input_ids) for example in examples]
    columns = {
        "tokens": list(itertools.chain.from_iterable(example.input_ids for example in examples)),
        "offsets": list(itertools.accumulate(lengths, initial=0)),
        "targets": [example.targets for example in examples],
        "labels": [example.label for example in examples],
    }
    return {name: np.array(columns[name], dtype) for name, dtype in _ARRAYS.items()}


def examples_of_arrays(tensors: dict[str, NDArray[Any]], split: str, path: Path) -> list[EncodedExample]:
    """The examples that `example_arrays` gave, from tensors named ``SPLIT.NAME``.

    Raises:
        InputError: naming `path` and the tensor, if one is missing or they contradict each other.
    """
    tokens, offsets, targets, labels = (
        _tensor(tensors, f"{split}.{name}", dtype, path) for name, dtype in _ARRAYS.items()
    )
    for name, column in (("targets", targets), ("labels", labels)):
        if len(column) != len(offsets) - 1:
            raise InputError(
                f"data set {path}: expected {len(offsets) - 1} entries in {split}.{name}, one for each row "
                f"of {split}.offsets, got {len(column)}"
            )
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(tokens) or (np.diff(offsets) < 0).any():
        raise InputError(
            f"data set {path}: expected {split}.offsets to rise from 0 to {len(tokens)}, the length of "
            f"{split}.tokens"
        )
    return [
        EncodedExample(tokens[first:last].tolist(), int(label), int(answer))
        for first, last, label, answer in zip(offsets[:-1], offsets[1:], labels, targets, strict=True)
    ]


def _tensor(tensors: dict[str, NDArray[Any]], name: str, dtype: Any, path: Path) -> NDArray[Any]:
    if name not in tensors:
        raise InputError(f"data set {path}: there is no tensor {name}")
    tensor = tensors[name]
    if tensor.dtype != dtype or tensor.ndim != 1:
        got = f"{tensor.dtype} {list(tensor.shape)}"
        raise InputError(f"data set {path}: expected {name} to be {np.dtype(dtype)} [n], got {got}")
    return tensor


def _list(metadata: dict[str, str], name: str, kind: type, path: Path) -> list[Any]:
    """A JSON list of strings or of numbers in the metadata."""
    try:
        value = strict_json.loads_as_native(metadata[name].encode())
    except (KeyError, ValueError):
        value = None
    if not isinstance(value, list) or any(type(item) is not kind for item in value):
        raise InputError(
            f"data set {path}: expected {name} to be a JSON list of {kind.__name__}, "
            f"got {metadata.get(name)!r}"
        )
    return value


def _check(dataset: TokenizedDataset, path: Path) -> None:
    """Raise InputError, naming the file and the part, unless all parts of the data set agree."""
    candidates = dataset.candidate_tokens
    if candidates is not None and not (2 <= len(set(candidates)) == len(candidates) == len(dataset.labels)):
        raise InputError(
            f"data set {path}: expected candidate_tokens to be a different token for each of at least two "
            f"labels {list(dataset.labels)}, got {list(candidates)}"
        )
    if not dataset.order:
        raise InputError(f"data set {path}: expected at least one row in {_ORDER}, got none")
    rows = len(dataset.train)
    for row in dataset.order:
        if not 0 <= row < rows:
            raise InputError(
                f"data set {path}: expected rows of train, from 0 to {rows - 1}, got {row} in {_ORDER}"
            )
    found = set()
    for row in dataset.in_turn:
        if not 0 <= row < rows or row in found:
            raise InputError(
                f"data set {path}: expected different rows of train, from 0 to {rows - 1}, in {_IN_TURN}, "
                f"got {row}"
            )
        found.add(row)
    for split in SPLITS:
        for row, example in enumerate(getattr(dataset, split)):
            if problem := _problem(example, dataset):
                raise InputError(f"data set {path}: row {row} of {split}: {problem}")


def _problem(example: EncodedExample, dataset: TokenizedDataset) -> str:
    """What is wrong with an example, as the end of a sentence; empty if nothing is."""
    tokens, targets, label = example.input_ids, example.targets, example.label
    if min(tokens, default=0) < 0:
        return f"expected token ids from 0, got {min(tokens)}"
    if not 1 <= targets < len(tokens):
        return f"expected targets from 1 to {len(tokens) - 1}, one less than its tokens, got {targets}"
    if not -1 <= label < len(dataset.labels):
        return f"expected a label from -1 to {len(dataset.labels) - 1}, got {label}"
    candidates = dataset.candidate_tokens
    if candidates is not None:
        strangers = [token for token in tokens[-targets:] if token not in candidates]
        if strangers:
            return f"expected targets among the candidate tokens {list(candidates)}, got {strangers}"
        if label >= 0 and tokens[-1] != candidates[label]:
            return f"expected the token {candidates[label]} of its label at the end, got {tokens[-1]}"
    return ""
