"""Files of labelled texts: what a well-formed one says, and by which line a malformed one is refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobizo_kernels.data import Example
from mobizo_kernels.data.files import read_file
from mobizo_kernels.errors import InputError


def read(path: Path, content: str | bytes, *columns: str) -> list[Example]:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_file(path, "text", "label", columns)


def test_csv(tmp_path: Path) -> None:
    file = tmp_path / "data.csv"
    file.write_text(
        '\ufeffid,review,stars\n\n1," two\nlines, ""quoted"" ",good\n2,plain,bad\n', encoding="utf-8"
    )
    assert read_file(file, "review", "stars") == [
        Example('two\nlines, "quoted"', "good"),
        Example("plain", "bad"),
    ]


@pytest.mark.parametrize("ending", ["\n", "\r\n", "\r"])
def test_line_endings(ending: str, tmp_path: Path) -> None:
    expected = [Example("one", "1"), Example("two", "2")]
    content = ending.join(["text,label", "one,1", "", "two,2", ""])
    assert read(tmp_path / "data.csv", b"\xef\xbb\xbf" + content.encode()) == expected
    content = ending.join(['{"text": "one", "label": 1}', "  ", '{"text": "two", "label": 2}'])
    assert read(tmp_path / "DATA.JSONL", b"\xef\xbb\xbf" + content.encode()) == expected


CELLS = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t\",;'"), min_size=1)


@given(
    rows=st.lists(st.tuples(CELLS, CELLS), min_size=1),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_a_csv_writer_wrote_is_read(
    rows: list[tuple[str, str]], quoting: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [("a" + text + "z", "l" + label) for text, label in rows]
    buffer = io.StringIO(newline="")
    csv.writer(buffer, quoting=quoting).writerows([("text", "label"), *rows])  # type: ignore[arg-type]
    file = tmp_path_factory.getbasetemp() / "written.csv"
    assert read(file, buffer.getvalue()) == [Example(*row) for row in rows]


def test_a_long_text(tmp_path: Path) -> None:
    text = "long " * 50_000
    limit = csv.field_size_limit()
    assert read(tmp_path / "data.csv", f"text,label\n{text},1\n") == [Example(text.strip(), "1")]
    assert csv.field_size_limit() == limit


def test_jsonl(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    rows = [
        {"t": "one ", "y": 1},
        {"t": "café", "y": "1"},
        {"t": "three", "y": True},
        {"t": "\U0001f600", "y": 0.5},
    ]
    file.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n", encoding="utf-8")
    assert read_file(file, "t", "y") == [
        Example("one", "1"),
        Example("café", "1"),
        Example("three", "true"),
        Example("\U0001f600", "0.5"),
    ]


def test_further_columns(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"t": "one", "y": 1, "q": " why ", "n": 5, "unused": ""}\n', encoding="utf-8")
    assert read_file(file, "t", "y", ["q", "n"]) == [Example("one", "1", (("q", "why"), ("n", "5")))]
    with pytest.raises(InputError, match="line 1 has no column 'absent'"):
        read_file(file, "t", "y", ["absent"])
    with pytest.raises(InputError, match="line 1 has an empty 'unused'"):
        read_file(file, "t", "y", ["unused"])


@pytest.mark.parametrize("columns", [("label", "label", []), ("text", "label", ["label"])])
def test_a_label_in_the_prompt_is_refused(columns: tuple[str, str, list[str]], tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("text,label\nfine,1\n")
    with pytest.raises(InputError, match="label_column: 'label' is in the prompt too"):
        read_file(tmp_path / "data.csv", *columns)


LONE = r'{"text": "a", "label": 1}' + "\n" + r'{"text": "half \ud83d", "label": 1}'
DEEP = '{"text": "a", "label": 1}\n' + "[" * 100_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("csv", "text,label\nfine,a\n  ,b\n", "line 3 has an empty 'text'"),
        ("csv", "text,label\nfine,a\nb, \n", "line 3 has an empty 'label'"),
        ("csv", "text,label\n\u00a0\u200b,a\n", "line 2 has an empty 'text'"),
        ("csv", "text,label\nfine,a\nshort\n", "line 3 has 1 and not the 2 cells of the header"),
        (
            "csv",
            "text,label\nfine,a\n\none, two,b\n",
            "line 4 has 3 and not the 2 cells .* a text with commas",
        ),
        ("csv", "words,label\nfine,a\n", "line 1 has no column 'text', only 'words', 'label'"),
        ("csv", "text;label\nfine;a\n", "line 1 has no column 'text', only 'text;label'"),
        ("csv", "text,text,label\nfine,other,a\n", "line 1 has 2 columns 'text', expected one"),
        ("csv", '"a",label\nfine,"a\nb"\n"open,a\nnext,b\n"shut,a\n', "line 1 has no column 'text'"),
        ("csv", 'text,label\nfine,"a\nb"\n"open,a\nnext,b\n"shut,a\n', "line 4 begins a cell with a quote"),
        ("csv", 'text,label\nfine,a\n"open,a\nnext,b\n', "line 3 begins a cell with a quote"),
        ("csv", 'text,label\n12" wide,a\n', "line 2 has a quote in the cell '12\" wide'"),
        ("csv", 'text,label\nfine, "a, b"\n', "line 2 has a quote in the cell ' \"a'"),
        ("csv", "text,label\n", "has no rows"),
        ("csv", "", "has no rows"),
        ("csv", b"text,label\nfine,a\n\xff\xfe,a\n", "has the byte 0xff on line 3, expected text in UTF-8"),
        ("csv", b"text,label\nfine,a\nf\0ne,a\n", "has a zero byte on line 3, expected text in UTF-8"),
        ("csv", "text,label\nfine,a\n".encode("utf-16"), "is UTF-16, expected text in UTF-8"),
        ("csv", "text,label\nfine,a\n".encode("utf-16-be"), "has a zero byte on line 1"),
        (
            "csv",
            gzip.compress(b"text,label\nfine,a\n", mtime=0),
            "is compressed by gzip, expected text in UTF-8",
        ),
        ("jsonl", '{"text": "a", "label": 1}\n{"text"\n', "line 2 is not JSON"),
        ("jsonl", "[1, 2]\n", r"line 1 is no JSON object, but '\[1, 2\]'"),
        ("jsonl", "[\n", r"line 1 is not JSON \(Expecting value at column 2\)"),
        ("jsonl", '{"text": null, "label": 1}\n', "line 1 has an empty 'text'"),
        ("jsonl", '{"text": "a", "label": null}\n', "line 1 has an empty 'label'"),
        ("jsonl", '{"text": "a"}\n', "line 1 has no column 'label', only 'text'"),
        ("jsonl", '{"text": NaN, "label": 1}\n', r"line 1 is not JSON \(NaN is no number of JSON\)"),
        ("jsonl", '{"text": "a", "label": -Infinity}\n', "-Infinity is no number of JSON"),
        ("jsonl", '{"text": "a", "label": 1e999}\n', "1e999 is beyond the largest number"),
        (
            "jsonl",
            '{"text": "a", "text": "b", "label": 1}\n',
            r"line 1 is not JSON \('text' is given twice\)",
        ),
        ("jsonl", '{"text": ["a"], "label": 1}\n', "line 1 has a list for 'text', expected a string"),
        ("jsonl", '{"text": 5, "label": 1}\n', "line 1 has a number for 'text', expected a string"),
        ("jsonl", '{"text": "a", "label": {}}\n', "line 1 has an object for 'label', expected a string or"),
        ("jsonl", '{"text": "a", "label": ' + "1" * 5000 + "}", r"a number of 5000 digits is too long"),
        ("jsonl", DEEP, r"line 2 is not JSON \(nested too deeply\)"),
        ("jsonl", LONE, r"line 2 is not JSON \(has half a character \(a lone surrogate\): 'half \\ud83d'"),
        ("txt", "text", "expected FILE.csv or FILE.jsonl or the name of a task, got"),
        ("csv.gz", "text", "expected FILE.csv or FILE.jsonl or the name of a task, got"),
        ("tsv", "text\tlabel", "expected FILE.csv or FILE.jsonl or the name of a task, got"),
    ],
)
def test_malformed(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read(tmp_path / f"data.{name}", content)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


def test_no_regular_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    os.mkfifo(tmp_path / "b.csv")
    (tmp_path / "c.csv").symlink_to("/proc/self/mem")
    (tmp_path / "d.csv").symlink_to("d.csv")
    problems = {
        "a": "is a directory",
        "b": "is a pipe or device",
        "c": "cannot be read",
        "d": "cannot be read",
    }
    for name, problem in problems.items():
        with pytest.raises(InputError, match=problem):
            read_file(tmp_path / f"{name}.csv", "text", "label")
    with pytest.raises(InputError, match="cannot be read"):
        read_file(tmp_path / f"{'n' * 300}.csv", "text", "label")


def test_a_file_that_changes_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "data.csv"
    file.write_text("text,label\nfine,1\n")
    status = os.fstat

    def fstat_and_append(descriptor: int) -> os.stat_result:
        found = status(descriptor)
        with file.open("a") as other:
            other.write("more,1\n")
        return found

    monkeypatch.setattr(os, "fstat", fstat_and_append)
    with pytest.raises(InputError, match="changed while it was read"):
        read_file(file, "text", "label")
