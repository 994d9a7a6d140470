"""Small tokenizers with the parts of well-known ones, trained by the library `tokenizers`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace("{1,3}", "")
GPT4O_PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

CORPUS = [
    "The quick brown fox didn't jump over 12 lazy dogs; it's 3.14 o'clock, isn't it? They'll say WE'RE LATE.",
    "def add(a, b):\n    return a + b\n\n\tprint(add(1, 23456))  # 7 -> 9\r\n",
    "Größe, naïve café, Übermut; cafe\u0301 de\u0301ja\u0300 vu, Å\u030a, ﬁn, ½ ²",
    "Привет, мир! Как дела? 世界你好,今天天气怎么样?こんにちは世界。안녕하세요 세계",
    "שלום עולם, مرحبا بالعالم ١٢٣, नमस्ते दुनिया १२३, สวัสดีชาวโลก",
    "👩‍👩‍👧‍👦 and 🏳️‍🌈, 👍🏽 👍👍 🇩🇪; ∑x² ≤ ∞ — “quotes” … _under_score_",
    "one  two   three    four     five      six\u00a0seven\u3000eight\u200bnine",
] * 3


def _bpe(**options: object) -> Tokenizer:
    return Tokenizer(models.BPE(**options))  # type: ignore[arg-type]


def _byte_level(*steps: pre_tokenizers.PreTokenizer, **options: object) -> Tokenizer:
    tokenizer = _bpe(**options)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(steps))
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _split(pattern: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Split(Regex(pattern), "isolated", invert=False)


def _bytes_only() -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def gpt2() -> Tokenizer:
    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


def gpt2_with_a_space() -> Tokenizer:
    return _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True))


def smollm2() -> Tokenizer:
    return _byte_level(pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False))


def llama3() -> Tokenizer:
    return _byte_level(_split(LLAMA3_PATTERN), _bytes_only(), ignore_merges=True)


def qwen2() -> Tokenizer:
    tokenizer = _byte_level(_split(QWEN2_PATTERN), _bytes_only())
    tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def gpt4o() -> Tokenizer:
    return _byte_level(_split(GPT4O_PATTERN), _bytes_only(), ignore_merges=True)


def _sentencepiece(**options: object) -> Tokenizer:
    tokenizer = _bpe(unk_token="<unk>", byte_fallback=True, fuse_unk=True, **options)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def llama2() -> Tokenizer:
    tokenizer = _sentencepiece()
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def gemma() -> Tokenizer:
    tokenizer = _sentencepiece()
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous", invert=False)
    return tokenizer


def mistral() -> Tokenizer:
    tokenizer = _sentencepiece(ignore_merges=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "first", split=False)
    return tokenizer


def metaspace() -> Tokenizer:
    tokenizer = _sentencepiece()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")
    tokenizer.decoder = decoders.Metaspace("▁", "always")
    return tokenizer


def metaspace_never() -> Tokenizer:
    tokenizer = _bpe(unk_token="<unk>", fuse_unk=False)
    tokenizer.normalizer = normalizers.NFD()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "never")
    tokenizer.decoder = decoders.Metaspace("▁", "never")
    return tokenizer


def words() -> Tokenizer:
    """Without byte fallback: an unknown token for a row of characters, and a space between tokens."""
    tokenizer = _bpe(unk_token="<unk>", fuse_unk=True)
    steps = [
        pre_tokenizers.Whitespace(),
        pre_tokenizers.Punctuation("contiguous"),
        pre_tokenizers.Digits(individual_digits=False),
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    return tokenizer


def letters() -> Tokenizer:
    """Without even an unknown token: what is not in the vocabulary goes."""
    tokenizer = _bpe()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Split(Regex(r"[aeiou]+"), "merged_with_next", invert=True),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Strip("e", 2, 0),
            decoders.Replace("o", "<o>"),
            decoders.Fuse(),
            decoders.Replace(">a", "A"),
        ]
    )
    return tokenizer


KINDS: dict[str, Callable[[], Tokenizer]] = {
    kind.__name__: kind
    for kind in (
        gpt2,
        gpt2_with_a_space,
        smollm2,
        llama3,
        qwen2,
        gpt4o,
        llama2,
        gemma,
        mistral,
        metaspace,
        metaspace_never,
        words,
        letters,
    )  # fmt: skip
}

ADDED = [
    AddedToken("<|im_end|>", special=True, normalized=False),
    AddedToken("<mask>", special=True, normalized=False, lstrip=True),
    AddedToken("<right>", special=False, normalized=False, rstrip=True),
    AddedToken("<both>", special=True, normalized=True, lstrip=True, rstrip=True),
    AddedToken("word", special=False, normalized=False, single_word=True),
    AddedToken("tool call", special=False, normalized=True),
    AddedToken("tool", special=False, normalized=True, single_word=True),
    AddedToken("e\u0301e", special=False, normalized=True),
]


def trained(kind: str) -> Tokenizer:
    """One of `KINDS`, with added tokens of every sort and a token before and behind a text."""
    tokenizer = KINDS[kind]()
    model = json.loads(tokenizer.to_str())["model"]
    byte_level = "ByteLevel" in tokenizer.to_str()
    special = ["<unk>", "<s>", "</s>"]
    if model["byte_fallback"]:
        special += [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        show_progress=False,
        special_tokens=special,
        limit_alphabet=1000 if byte_level else 60,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if byte_level else ["a", "▁"],
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    values = json.loads(tokenizer.to_str())
    values["added_tokens"] = [token for token in values["added_tokens"] if "<0x" not in token["content"]]
    tokenizer = Tokenizer.from_str(json.dumps(values))  # bytes are tokens of the model alone
    tokenizer.add_tokens(ADDED)
    template = processors.TemplateProcessing("<s> $A </s>", "<s> $A </s> $B:1", [("<s>", 1), ("</s>", 2)])
    parts = [processors.ByteLevel(trim_offsets=False), template]
    tokenizer.post_processor = processors.Sequence(parts)  # type: ignore[arg-type]
    return tokenizer


def saved(kind: str, folder: Path) -> tuple[Tokenizer, Path]:
    """`trained(kind)` and its tokenizer.json."""
    path = folder / f"{kind}.json"
    tokenizer = trained(kind)
    tokenizer.save(str(path))
    return Tokenizer.from_file(str(path)), path
