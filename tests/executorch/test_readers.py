"""Data sets and journals that are damaged in their headers: both readers, Python's and the native one, say
the same.
"""

from __future__ import annotations

import json
import random
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from crash import start_runner
from differential import PIECES
from journals import BAD_RULES
from programs import tiny_dataset, tiny_program

from mobizo_kernels.data import read_dataset
from mobizo_kernels.errors import InputError
from mobizo_kernels.executorch import Trainer
from mobizo_kernels.journal import read_journal

# What the native trainer says of a data set that is sound, but not for its program.
OTHER_PROGRAM = ("must be those of the program", "is not in the vocabulary", "expected at most")


@pytest.fixture(scope="module")
def trainer(tmp_path_factory: pytest.TempPathFactory) -> Trainer:
    return Trainer(tiny_program(tmp_path_factory))


def verdicts(path: Path, trainer: Trainer) -> tuple[str, str]:
    """What is wrong with a file by each reader, "" for nothing."""
    python = native = ""
    try:
        read_dataset(path)
    except InputError as error:
        python = str(error)
    try:
        trainer.evaluate(path, rows=1)
    except ValueError as error:
        native = "" if any(part in str(error) for part in OTHER_PROGRAM) else str(error)
    return python, native


def parts(content: bytes) -> tuple[dict[str, object], bytes]:
    """The header of a safetensors file, without the checksum, and its data."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    del header["__metadata__"]["checksum"]
    return header, content[8 + size :]


def file_of(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def damaged(header: bytes, seed: int) -> bytes:
    """The header with a few bytes or pieces changed, moved, doubled or left out."""
    rng = random.Random(seed)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at = rng.randrange(len(header))
        size = rng.choice((0, 1, 1, 2, 8, 40))
        new = rng.choice(
            (b"", rng.choice(PIECES), rng.choice(PIECES), rng.randbytes(1), header[at : at + 2 * size])
        )
        header = header[:at] + new + header[at + size :]
    return header


def odd_headers(header: dict[str, object]) -> Iterator[tuple[str, bytes]]:
    """Headers that one reader or the other would take if it were left to its library."""
    text = json.dumps(header)

    def metadata(**values: object) -> bytes:
        return json.dumps({**header, "__metadata__": {**header["__metadata__"], **values}}).encode()  # type: ignore[dict-item]

    def more(name: str, value: str) -> bytes:
        return f'{text[:-1]}, "{name}": {value}}}'.encode()

    def entry(**values: object) -> bytes:
        return json.dumps({**header, "train.order": {**header["train.order"], **values}}).encode()  # type: ignore[dict-item]

    empty = '{"dtype": "%s", "shape": %s, "data_offsets": [0, 0]}'
    yield from {
        "as it was": text.encode(),
        "space around it": b" \n\t\r" + text.encode() + b" \n\t\r",
        "a byte-order mark": "\ufeff".encode() + text.encode(),
        "UTF-16": text.encode("utf-16"),
        "a name twice": more("train.order", json.dumps(header["train.order"])),
        "metadata twice": more("__metadata__", "{}"),
        "metadata null": json.dumps({**header, "__metadata__": None}).encode(),
        "a number in the metadata": metadata(source=1),
        "a number beyond float64": more("x", "1e999"),
        "NaN": metadata(candidate_tokens="[5, NaN]"),
        "another layout": metadata(candidate_tokens=" [5,\n9] "),
        "null with space": metadata(candidate_tokens=" null\n"),
        "null twice": metadata(candidate_tokens="null null"),
        "a candidate of 65 bits": metadata(candidate_tokens="[5, 9, 18446744073709551616]"),
        "a candidate as true": metadata(candidate_tokens="[true, 9]"),
        "a candidate as 5.0": metadata(candidate_tokens="[5.0, 9]"),
        "a candidate twice": metadata(candidate_tokens="[5, 5]"),
        "a label that is a number": metadata(labels='["no", 1]'),
        "half a character": metadata(labels='["no", "\\ud800"]'),
        "a whole one": metadata(labels='["no", "\\ud83d\\ude00"]'),
        "three labels": metadata(labels='["a", "b", "c"]'),
        "another format": metadata(format="mobizo-dataset-2"),
        "no format": metadata(format=""),
        "half a character in a text": text.replace('"source": ""', '"source": "\\udc00"').encode(),
        "bytes that are no UTF-8": text.encode().replace(b'"source": ""', b'"source": "\xff"'),
        "a long form": text.encode().replace(b'"source": ""', b'"source": "\xc0\xaf"'),
        "a null": text.replace('"source": ""', '"source": "\\u0000"').encode(),
        "an empty tensor": more("x", empty % ("F16", "[0]")),
        "an empty tensor of huge sizes": more("x", empty % ("F16", [0, 2**62, 2**62])),
        "huge sizes of an empty tensor": more("x", empty % ("F16", [2**62, 4, 0])),
        "sizes below 0": more("x", empty % ("F16", [-1, 0])),
        "sizes of 65 bits": more("x", empty % ("F16", [2**64, 0])),
        "another dtype": more("x", empty % ("F8_E4M3", "[0]")),
        "a gap": more("x", '{"dtype": "I8", "shape": [0], "data_offsets": [1, 1]}'),
        "more in an entry": entry(more={"a": [None]}),
        "two dimensions": entry(shape=[1, 19]),
        "no dimensions": entry(shape=[]),
        "unsigned": entry(dtype="U32"),
        "offsets as text": entry(data_offsets="00"),
        "three offsets": entry(data_offsets=[0, 0, 0]),
        "64 levels": entry(deep=1).replace(b'"deep": 1', b'"deep": ' + b"[" * 62 + b"1" + b"]" * 62),
        "65 levels": entry(deep=1).replace(b'"deep": 1', b'"deep": ' + b"[" * 63 + b"1" + b"]" * 63),
        "66 levels": entry(deep=1).replace(b'"deep": 1', b'"deep": ' + b"[" * 64 + b"]" * 64),
        "100,000 levels": more("x", "[" * 100_000),
        "many digits": entry(long=1).replace(b'"long": 1', b'"long": ' + b"1" * 5000),
        "a list": f"[{text}]".encode(),
        "nothing": b"",
    }.items()


def test_odd_headers(trainer: Trainer, tmp_path: Path, rng: torch.Generator) -> None:
    path = tiny_dataset(tmp_path / "data.safetensors", rng)
    header, data = parts(path.read_bytes())
    taken = []
    for name, changed in odd_headers(header):
        path.write_bytes(file_of(changed, data))
        python, native = verdicts(path, trainer)
        assert bool(python) == bool(native), (name, python, native)
        taken += [name] if not python else []
        for sentence in (python, native):
            assert not sentence or str(path) in sentence
    assert taken == [
        "as it was", "space around it", "another layout", "null with space", "a whole one", "a null",
        "an empty tensor", "an empty tensor of huge sizes", "more in an entry", "64 levels",
    ]  # fmt: skip


def test_headers_damaged_anywhere(trainer: Trainer, tmp_path: Path, rng: torch.Generator) -> None:
    path = tiny_dataset(tmp_path / "data.safetensors", rng)
    whole = path.read_bytes()
    header, data = parts(whole)
    text = json.dumps(header).encode()
    taken = 0
    for seed in range(600):
        path.write_bytes(file_of(damaged(text, seed), data))
        python, native = verdicts(path, trainer)
        assert bool(python) == bool(native), (seed, python, native)
        taken += not python
    assert 10 < taken < 300


def test_a_byte_changed_anywhere(trainer: Trainer, tmp_path: Path, rng: torch.Generator) -> None:
    """The checksum covers all that the file says; spaces say nothing."""
    path = tiny_dataset(tmp_path / "data.safetensors", rng)
    whole, said = path.read_bytes(), read_dataset(path)
    for seed in range(300):
        at = random.Random(seed).randrange(len(whole))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << seed % 8]) + whole[at + 1 :])
        python, native = verdicts(path, trainer)
        assert bool(python) == bool(native), (seed, python, native)
        assert python or read_dataset(path) == said


def journal_verdicts(path: Path) -> tuple[str, str]:
    """What is wrong with a journal by each reader, "" for nothing."""
    python = ""
    try:
        read_journal(path)
    except ValueError as error:
        python = str(error)
    process = start_runner(["info", path])
    _, errors = process.communicate()
    assert process.returncode in (0, 2), errors
    return python, errors


def parts_of_journal(path: Path) -> tuple[bytes, bytes]:
    """The JSON of its header, and its records."""
    content = path.read_bytes()
    (size,) = struct.unpack_from("<I", content, 12)
    return content[16 : 16 + size], content[20 + size :]


def write_journal(path: Path, header: bytes, records: bytes) -> None:
    """Change the header of a journal of the current version, its checksum mended."""
    head = path.read_bytes()[:12] + struct.pack("<I", len(header)) + header
    path.write_bytes(head + struct.pack("<I", zlib.crc32(head)) + records)


def test_headers_of_journals(trainer: Trainer, tmp_path: Path, rng: torch.Generator) -> None:
    """Their checksum mended: it is all that stands between most damage and the readers."""
    path = tmp_path / "journal"
    dataset = tiny_dataset(tmp_path / "data.safetensors", rng)
    trainer.train(dataset, steps=2, eval_every=0, keep="last", journal=path)
    header, records = parts_of_journal(path)
    values = json.loads(header)
    parameter = values["parameters"][0]
    changed = [
        header,
        header.replace(b'"queries":2', b'"queries":true'),
        header.replace(b'"queries":2', b'"queries":2.0'),
        header.replace(b'"normalize":true', b'"normalize":1'),
        header.replace(b'"lr":0.2', b'"lr":"0.2"'),
        header.replace(b'"lr":0.2', b'"lr":1e999'),
        header.replace(b'"lr":0.2', b'"lr":0.2,"lr":0.2'),
        header.replace(b'"momentum":0.0', b'"momentum":false'),
        header.replace(b'"momentum":0.0', b'"momentum":0.0,"nesterov":0'),
        header.replace(b'"estimator":"', b'"estimator":"\xff'),
        *(json.dumps({**values, name: [None]}).encode() for name in values),
        *(json.dumps({**values, name: None}).encode() for name in values),
        *(json.dumps({k: v for k, v in values.items() if k != name}).encode() for name in values),
        *(
            json.dumps({**values, "parameters": [{**parameter, name: {}}]}).encode()
            for name in (*parameter, "more")
        ),
        *(damaged(header, seed) for seed in range(60)),
    ]
    taken = 0
    for text in changed:
        write_journal(path, text, records)
        python, native = journal_verdicts(path)
        assert bool(python) == bool(native), (text, python, native)
        taken += not python
    assert 10 < taken < len(changed) // 2


def test_optimizers_of_journals(trainer: Trainer, tmp_path: Path, rng: torch.Generator) -> None:
    """Both readers say the same of what is none."""
    path = tmp_path / "journal"
    dataset = tiny_dataset(tmp_path / "data.safetensors", rng)
    trainer.train(dataset, steps=1, eval_every=0, keep="last", journal=path)
    header, records = parts_of_journal(path)
    for values, sentence in BAD_RULES:
        write_journal(path, json.dumps({**json.loads(header), "optimizer": values}).encode(), records)
        python, native = journal_verdicts(path)
        assert f"(optimizer: {sentence})" in python
        assert native.endswith(f" optimizer: {sentence}\n")
    for lr, shown in ((-1, "-1"), (3.5e38, "3.5e.38")):
        write_journal(path, json.dumps({**json.loads(header), "lr": lr}).encode(), records)
        for said in journal_verdicts(path):
            assert re.search(rf"[( ]lr must be at least 0 and finite in float32, got {shown}\b", said), said
