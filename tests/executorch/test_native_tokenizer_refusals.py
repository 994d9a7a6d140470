"""What the native tokenizer refuses, by name: parts of a tokenizer.json that it lacks, and damaged ones."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizer_pairs import NativeTokenizer, changed, check_ids, skip_without_regex
from tokenizers import Regex, normalizers, pre_tokenizers
from tokenizers_of_kinds import CORPUS, saved, trained

from mobizo_kernels.executorch import _trainer

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
