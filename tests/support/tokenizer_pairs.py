"""The library's tokenizers and the native ones of the same files, and random texts for both."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers_of_kinds import CORPUS, saved

from mobizo_kernels.executorch import _trainer

NativeTokenizer = _trainer.NativeTokenizer
WITHOUT_REGEX = ("llama2", "gemma", "mistral", "metaspace", "metaspace_never", "words")  # need none

# Characters that tokenizers tell apart, by what they are to a pattern, a normal form or a decoder.
POOLS = [
    "abcdefgh ostuvwl'",
    "  \t\n\r\u00a0\u3000\u2028\u180e\u200b\x85\x0b\x0c",
    "0123456789½²①Ⅷ٣१",
    "'\"-_.,;:!?()[]{}<>|/\\$+^~`",
    "\u0301\u0300\u0323\u0327\u030a\u0345\u094d\u200d\ufe0f",
    "éÅÖüñſKÅﬁΩδж漢字かな가각힣ᄀ",
    "👍🏽👩🇩🇪😀𝕏𐍈",
    "שלוםمرحبا١",
    "\x00\x01\x1b\x7f\ufffd\uffff\U0010ffff\ue000",
]
PIECES = [
    "<|im_end|>", "<mask>", "<right>", "<both>", "word", "tool call", "tool", "e\u0301e", "\u00e9e", "'ll",
    "'S", "it's", "<s>", "<unk>", "<0x41>", "▁", "  ", "<", "Ġ", "▁word", "word ",
    *CORPUS[0].split(), *CORPUS[3].split(),
]  # fmt: skip

# Marks and letters of which the library's normal forms know nothing, being of an older Unicode.
UNKNOWN_TO_NFC = frozenset({0x1DF6, *range(0x1E4EC, 0x1E4EE), *range(0x105C0, 0x16E00)})


def random_text(rng: random.Random) -> str:
    text = ""
    for _ in range(rng.choice((1, 2, 3, 5, 8, 20, 60))):
        kind = rng.random()
        if kind < 0.3:
            text += rng.choice(PIECES)
        elif kind < 0.9:
            text += "".join(rng.choice(rng.choice(POOLS)) for _ in range(rng.randrange(1, 6)))
        elif kind < 0.95:
            text += code_points(rng.randrange(0x110000), 0x110000, 0x110000)
        else:
            text += rng.choice(rng.choice(POOLS)) * rng.randrange(1, 50)
    return text


def code_points(start: int, stop: int, step: int) -> str:
    """Characters that are none of surrogates."""
    codes = (code for code in range(start, stop, step) if not 0xD800 <= code < 0xE000)
    return "".join(chr(code) for code in codes if code not in UNKNOWN_TO_NFC)


def skip_without_regex(kind: str) -> None:
    if not _trainer.HAS_REGEX and kind not in WITHOUT_REGEX:
        pytest.skip("built without PCRE2")


def both(kind: str, folder: Path) -> tuple[Tokenizer, NativeTokenizer]:
    skip_without_regex(kind)
    library, path = saved(kind, folder)
    return library, NativeTokenizer(path)


def check_ids(pair: tuple[Tokenizer, NativeTokenizer], text: str, *, special: bool = True) -> list[int]:
    library, native = pair
    ids: list[int] = library.encode(text, add_special_tokens=special).ids
    assert native.encode(text, special).tolist() == ids, ascii(text)
    return ids


def check_text(pair: tuple[Tokenizer, NativeTokenizer], ids: list[int], *, skip: bool = True) -> None:
    library, native = pair
    text = library.decode(ids, skip_special_tokens=skip)
    assert native.decode(ids, skip) == text, ids
    stream = native.stream(skip)
    assert "".join(map(stream.push, ids)) + stream.finish() == text, ids


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The file with its JSON changed in place."""
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")
    return path
