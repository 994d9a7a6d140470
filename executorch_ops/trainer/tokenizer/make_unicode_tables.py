"""Writes unicode_tables.h, beside this file. Needs Python 3.11, whose unicodedata is that of Unicode 14.

    pip install unicodedata2==16.0.0
    python3.11 executorch_ops/trainer/tokenizer/make_unicode_tables.py

Unicode 16 is that of the regular expressions of `tokenizers`. PCRE2 has that of its release, 14 or later, so
the tables also tell what is newer than 14.
"""

from __future__ import annotations

import sys
import unicodedata as old
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path

import unicodedata2 as unicodedata

CODES = range(sys.maxunicode + 1)
# Symbols that are alphabetic (Other_Alphabetic), which unicodedata does not tell.
LETTER_SYMBOLS = (
    range(0x24B6, 0x24EA),
    range(0x1F130, 0x1F14A),
    range(0x1F150, 0x1F16A),
    range(0x1F170, 0x1F18A),
)
WIDTH = 128


def kind(code: int) -> str:
    """The CharacterKind of a code point, "" for none."""
    category = unicodedata.category(chr(code))
    if category[0] in "LM" or any(code in symbols for symbols in LETTER_SYMBOLS):
        return "kLetter"
    if category[0] == "N":
        return "kOtherNumber" if category == "No" else "kWordNumber"
    if category == "Pc":
        return "kConnector"
    if category[0] == "P" or (code < 0x80 and category[0] == "S"):
        return "kPunctuation"
    return ""


def newer(code: int) -> str:
    """The general category of a code point that Unicode 14 does not assign, "" for others."""
    category = unicodedata.category(chr(code))
    return f'"{category}"' if category != "Cn" and old.category(chr(code)) == "Cn" else ""


def combining_class(code: int) -> str:
    return str(unicodedata.combining(chr(code)) or "")


def ranges(value: Callable[[int], str]) -> list[str]:
    """Runs of code points of one value, in order."""
    rows = []
    for name, run in groupby(CODES, value):
        codes = list(run)
        if name:
            rows.append(f"{{{codes[0]:#x}, {codes[-1]:#x}, {name}}}")
    return rows


def decompositions() -> list[str]:
    """Canonical ones of one step: code point, first, second or 0, and whether the two compose."""
    rows = []
    for code in CODES:
        parts = unicodedata.decomposition(chr(code)).split()
        if not parts or parts[0].startswith("<"):
            continue
        first, second = int(parts[0], 16), int(parts[1], 16) if len(parts) > 1 else 0
        composes = unicodedata.normalize("NFC", chr(code)) == chr(code)
        rows.append(f"{{{code:#x}, {first:#x}, {second:#x}, {str(composes).lower()}}}")
    return rows


def array(declaration: str, rows: Iterable[str]) -> str:
    lines = [""]
    for row in rows:
        if len(lines[-1]) + len(row) + 2 > WIDTH:
            lines.append("")
        lines[-1] += f" {row},"
    return f"constexpr {declaration}[] = {{\n" + "\n".join(line.lstrip() for line in lines) + "\n};\n"


def header() -> str:
    return "\n".join(
        [
            "// Made by make_unicode_tables.py; included by unicode.cpp alone.",
            "// clang-format off",
            f'constexpr char kTablesVersion[] = "{unicodedata.unidata_version}";',
            array("KindRange kKindRanges", ranges(kind)),
            array("NewerRange kNewerRanges", ranges(newer)),
            array("ClassRange kClassRanges", ranges(combining_class)),
            array("Decomposition kDecompositions", decompositions()).rstrip("\n"),
            "// clang-format on\n",
        ]
    )


if __name__ == "__main__":
    if (old.unidata_version, unicodedata.unidata_version) != ("14.0.0", "16.0.0"):
        sys.exit("expected Python 3.11 and unicodedata2 16.0.0")
    Path(__file__).with_name("unicode_tables.h").write_text(header(), encoding="utf-8")
