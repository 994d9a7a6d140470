"""Files of texts on a device: the native readers take and refuse what Python's do, in the same words."""

from __future__ import annotations

import csv
import io
import json
import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from texts import any_text, outcome

from mobizo_kernels.data.conversations import read_conversations
from mobizo_kernels.data.files import read_file
from mobizo_kernels.executorch._library import load_trainer

native = load_trainer()


def native_examples(path: Path) -> Any:
    rows = native.read_examples(str(path), "text", "label", ["c"])
    return [(text, label, tuple(columns)) for text, label, columns in rows]


def python_examples(path: Path) -> Any:
    return [(e.text, e.label, e.columns) for e in read_file(path, "text", "label", ["c"])]


def agree(here: Any, there: Any, path: Path) -> str:
    """Both sides take the file alike, or refuse it in the same words but for what is no JSON."""
    (verdict, mine), (other, theirs) = outcome(here, path), outcome(there, path)
    assert verdict == other, (path.read_bytes(), mine, theirs)
    if verdict == "ok":
        assert mine == theirs
    else:
        theirs = theirs.replace(" or the name of a task", "")
        mine = mine.replace(" or the name of a task", "")
        if "is not JSON (" in mine:
            mine, theirs = mine.partition(" (")[0], theirs.partition(" (")[0]
        assert mine == theirs
    return verdict


CSV = [
    "a",
    "b",
    "c",
    "a b",
    "1",
    "x",
    "text",
    ",",
    '"',
    '""',
    "\n",
    "\r\n",
    "\r",
    "a b",
    " ",
    "\ufeff",
    "é",
    "\0",
    "x,y",
]


def test_random_csv_files(tmp_path: Path) -> None:
    path, verdicts = tmp_path / "data.csv", []
    for seed in range(1500):
        rng = random.Random(seed)
        rows = [[rng.choice(CSV) for _ in range(3)] for _ in range(rng.randint(0, 3))]
        lines = [",".join(f'"{cell}"' if rng.random() < 0.3 else cell for cell in row) for row in rows]
        content = rng.choice(("\n", "\r\n", "\r")).join(["text,label,c"] * (seed % 9 > 0) + lines)
        content += "".join(rng.choices(CSV, k=rng.choice((0, 0, 2, 9))))
        if seed % 7 == 0:
            content = "\ufeff" + content
        path.write_bytes(content.encode())
        verdicts.append(agree(python_examples, native_examples, path))
    assert 20 < verdicts.count("ok") < 1400


def test_written_csv_files(tmp_path: Path) -> None:
    """What a writer of any texts writes is read back."""
    path = tmp_path / "data.csv"
    for seed in range(60):
        rng = random.Random(seed)
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator=rng.choice(("\n", "\r\n")), quoting=rng.choice((0, 1)))
        writer.writerow(["label", "text", "c"])
        rows = [[rng.choice("01"), any_text(rng), any_text(rng)] for _ in range(20)]
        writer.writerows(rows)
        path.write_bytes(buffer.getvalue().encode())
        assert agree(python_examples, native_examples, path) == "ok"


VALUES: list[Any] = [
    "a", "", " ", "\u200b", "it's", 1, 1.5, 1e16, -0.0, True, None, [], {}, "x" * 60, 2**63, 2**64, "\ud800",
    "é",
]  # fmt: skip


def test_random_json_lines(tmp_path: Path) -> None:
    path, verdicts = tmp_path / "data.jsonl", []
    for seed in range(1500):
        rng = random.Random(seed)
        rows = []
        for _ in range(rng.randint(1, 3)):
            row = {
                name: rng.choice(VALUES if rng.random() < 0.3 else VALUES[:1])
                for name in ("text", "label", "c")
            }
            if rng.random() < 0.1:
                del row[rng.choice(list(row))]
            rows.append(json.dumps(row, ensure_ascii=rng.random() < 0.5 or "\ud800" in row.values()))
        content = rng.choice(("\n", "\r\n", "\r", "\n\n")).join(rows).encode(errors="replace")
        if rng.random() < 0.3:
            at = rng.randrange(len(content))
            content = content[:at] + rng.choice((b"", b"\xff", b"\0", b"{", b'"', b",")) + content[at + 1 :]
        path.write_bytes(content)
        verdicts.append(agree(python_examples, native_examples, path))
    assert 100 < verdicts.count("ok") < 1400


def native_conversations(path: Path) -> Any:
    return [(tuple(map(tuple, messages)), where) for messages, where in native.read_conversations(str(path))]


def python_conversations(path: Path) -> Any:
    return [(row.messages, row.where) for row in read_conversations(path)]


def test_random_conversations(tmp_path: Path) -> None:
    path, verdicts = tmp_path / "chat.jsonl", []
    for seed in range(1500):
        rng = random.Random(seed)

        def some(usual: Any, rng: random.Random = rng) -> Any:
            return (
                usual
                if rng.random() < 0.95
                else rng.choice([*VALUES, "user", "system", [1, "a"], {"a": None}])
            )

        roles = (["system"] if rng.random() < 0.3 else []) + ["user", "assistant"] * rng.randint(1, 2)
        messages: Any = [{"role": some(role), "content": some(f" {role} ")} for role in roles]
        if rng.random() < 0.1:
            rng.choice(messages).update(more=1)
        row = (
            {"messages": some(messages)}
            if rng.random() < 0.6
            else {"prompt": some("p"), "response": some("r")}
        )
        if rng.random() < 0.1:
            row.update(rng.choice(({"prompt": "x"}, {"other": 1}, {"messages": []})))
        if rng.random() < 0.05:
            row = rng.choice(([], 5, "text", None, {}))  # type: ignore[assignment]
        path.write_text(json.dumps(row) + "\n")
        verdicts.append(agree(python_conversations, native_conversations, path))
    assert 300 < verdicts.count("ok") < 1400


@pytest.mark.parametrize(
    "content",
    [
        b"", b"text,label,c", b"\xff\xfet\0", b"PK\x03\x04", b"\x1f\x8b\x08", b"BZh9", b"PAR1", b"a\n\xe9\n",
        b"a\nb\0", b"text,text,label,c\na,b,c,d\n", b"text,label,c\na,b\n", b'text,label,c\na,"b"c,d\n',
        b'text,label,c\n"a,b,c\n', b'text,label,c\na "b" c,1,2\n', b"\xef\xbb\xbftext,label,c\na,b,c\n",
        b"\xef\xbb\xbf\xef\xbb\xbftext,label,c\na,b,c\n", b"text,label,c\r\n\r\na,b,c\r",
        b"text,label,c\n,b,c\n",
    ],
)  # fmt: skip
def test_odd_files(content: bytes, tmp_path: Path) -> None:
    for name in ("data.csv", "data.jsonl"):
        path = tmp_path / name
        path.write_bytes(content)
        agree(python_examples, native_examples, path)


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    for path in (tmp_path / "none.csv", tmp_path / "folder.csv", Path("/dev/null.csv"), tmp_path / "x.txt"):
        verdicts = [outcome(function, path) for function in (python_examples, native_examples)]
        assert verdicts[0][0] == verdicts[1][0] == "refused"
        assert verdicts[0][1].replace(" or the name of a task", "") == verdicts[1][1]


def test_a_file_that_grows(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(b"text,label,c\n" + b"a,b,c\n" * 2_000_000)
    ended = threading.Event()

    def grow() -> None:
        with path.open("ab") as file:
            while not ended.is_set():
                file.write(b"a,b,c\n")
                file.flush()

    thread = threading.Thread(target=grow)
    thread.start()
    try:
        # The native reader holds the interpreter's lock, so another process has to read it.
        code = (
            "import sys; from mobizo_kernels.executorch._library import load_trainer\n"
            "load_trainer().read_examples(sys.argv[1], 'text', 'label', [])"
        )
        found = subprocess.run(
            [sys.executable, "-c", code, path], capture_output=True, text=True, check=False
        )
    finally:
        ended.set()
        thread.join()
    assert f"data: {path} changed while it was read" in found.stderr
