"""The cache of encoded examples: what is found in it, what is not, and what is thrown out of it."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from tiny_texts import TEMPLATE, WORDS, reviews, tokenizer

from mobizo_kernels.data import CachingEncoder, EncodedExample, Example, PromptEncoder, token_cache

ROWS = reviews()


def encoder(template: str = TEMPLATE, words: dict[str, str] = WORDS, max_length: int = 128) -> CachingEncoder:
    return CachingEncoder(tokenizer(), template, words, max_length)


def plain(rows: list[Example]) -> list[EncodedExample]:
    return PromptEncoder(tokenizer(), TEMPLATE, WORDS).encode(rows)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of an empty cache that takes small data too."""
    monkeypatch.setenv("MOBIZO_CACHE", str(tmp_path))
    monkeypatch.setattr(token_cache, "LEAST_CHARACTERS", 0)
    return tmp_path / "tokens"


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of rows of each encoding."""
    made: list[int] = []
    encode = PromptEncoder.encode

    def counting(self: PromptEncoder, examples: Sequence[Example]) -> list[EncodedExample]:
        made.append(len(examples))
        return encode(self, examples)

    monkeypatch.setattr(PromptEncoder, "encode", counting)
    return made


def test_the_second_time_nothing_is_encoded(cache: Path, calls: list[int]) -> None:
    expected = plain(ROWS)
    for encode in (encoder(), encoder()):
        assert encode.encode(ROWS) == encode.encode(ROWS) == expected
    assert calls == [len(ROWS)] * 2
    (file,) = cache.iterdir()
    content = file.read_bytes()
    file.unlink()
    encoder().encode(ROWS)
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    ("other", "rows"),
    [
        (encoder("{text} It is"), ROWS),
        (encoder(words={"0": " great", "1": " terrible"}), ROWS),
        (encoder(words={"1": " great", "0": " terrible"}), ROWS),
        (encoder(max_length=20), ROWS),
        (encoder(), ROWS[1:]),
        (encoder(), ROWS[::-1]),
        (encoder(), [Example(ROWS[0].text, "0"), *ROWS[1:-1], Example(ROWS[-1].text, "0")]),
        (encoder(), [Example(row.text, row.label, (("a", "b"),)) for row in ROWS]),
    ],
)
def test_whatever_decides_the_tokens_is_in_the_key(
    cache: Path, other: CachingEncoder, rows: list[Example]
) -> None:
    encoder().encode(ROWS)
    assert other.encode(rows) == PromptEncoder.encode(other, rows)
    assert len(list(cache.iterdir())) == 2


@pytest.mark.parametrize("damage", ["cut", "empty", "token", "header", "other"])
def test_a_damaged_file_is_made_anew(
    cache: Path, damage: str, calls: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    expected = encoder().encode(ROWS)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    flipped = bytearray(content)
    flipped[-1 if damage == "token" else 9] ^= 1
    bad = {"cut": content[:-5], "empty": b"", "other": b"x" * 99}
    file.write_bytes(bad.get(damage, bytes(flipped)))
    with caplog.at_level(logging.WARNING):
        assert encoder().encode(ROWS) == expected
    assert "is damaged and made anew" in caplog.text
    assert len(calls) == 2
    assert file.read_bytes() == content


def test_small_data_are_not_kept(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "LEAST_CHARACTERS", 10**6)
    assert encoder().encode(ROWS) == plain(ROWS)
    assert not cache.exists()


def test_the_longest_unused_goes_first(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [ROWS[:40], ROWS[40:80], ROWS[80:120]]
    files: list[Path] = []
    for age, part in enumerate(parts):
        encoder().encode(part)
        (new,) = set(cache.iterdir()) - set(files)
        os.utime(new, (1000 + age, 1000 + age))
        files.append(new)
    encoder().encode(parts[0])  # used again
    total = sum(file.stat().st_size for file in files)
    monkeypatch.setattr(token_cache, "MOST_BYTES", total)
    encoder().encode(ROWS[:30])
    assert files[0].exists() and files[2].exists()
    assert not files[1].exists()


def test_a_directory_that_cannot_be_written(cache: Path) -> None:
    cache.parent.mkdir(exist_ok=True)
    cache.write_text("no directory")
    assert encoder().encode(ROWS) == plain(ROWS)
    assert cache.read_text() == "no directory"
