"""Turn labelled texts into prompts that a language model answers with one label word.

Following the prompt-based classification of MeZO (arXiv 2305.17333) and MobiZO (arXiv 2409.15520): a
template puts the text in a sentence, a verbalizer names one word for each label, and the model's scores of
these words at the end of the prompt are the scores of the labels. executorch_ops/trainer/text/prompt.cpp is
the native twin: the same tokens.
"""

from __future__ import annotations

import hashlib
import json
import os
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import tokenizers
from transformers import PreTrainedTokenizerBase

from mobizo_kernels.data.datasets import Example
from mobizo_kernels.data.tokenizer_fingerprint import tokenizer_fingerprint
from mobizo_kernels.errors import InputError, blame_input, first_line, refuse_half_characters, shortened
from mobizo_kernels.files import strict_json

Part = tuple[str, str | None]

_TEXT = "text"
_PROBES = ("text", "Is it?", "(so)", "No 5.", "a\n")


@dataclass(frozen=True)
class EncodedExample:
    """A prompt and its answer in tokens.

    Attributes:
        input_ids: the prompt, then the answer: of a `PromptEncoder` the label word.
        label: the index of the label, in `PromptEncoder.labels`; -1 if there is none.
        targets: how many tokens at the end are the answer, at least 1.
    """

    input_ids: list[int]
    label: int
    targets: int = 1


class PromptEncoder:
    """Encodes examples for one tokenizer, template and verbalizer.

    Args:
        tokenizer: of the model that will read the prompts.
        template: a sentence holding ``{text}`` once, e.g. ``"{text} It was"``. Other names in braces
            stand for columns of the example: ``"{text}\\nQuestion: {question}?\\nAnswer:"``. A brace that is
            to be shown is doubled, as Python's format strings have it.
        verbalizer: the word of each label, with the white space before it, e.g.
            ``{"0": " terrible", "1": " great"}``.
        max_length: the most tokens of an encoded example, label word included. Longer texts lose their end,
            never the template, nor another column.

    Attributes:
        labels: the labels, in the order of the verbalizer.
        candidate_tokens: the token of each label's word, in the same order.
        words: of the labels, in the same order.
        template, max_length: as given.

    Raises:
        InputError: the template does not hold ``{text}`` once, or has braces of another meaning; a word is
            not exactly one token behind the prompt, or unknown to the tokenizer; two labels share a token;
            fewer than two labels; or max_length leaves no room for any text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str,
        verbalizer: Mapping[str, str],
        max_length: int = 128,
    ) -> None:
        self._parts = _parse_template(template)
        names = [name for _, name in self._parts]
        if names.count(_TEXT) != 1:
            raise InputError(f"template: expected {{text}} exactly once, got {template!r}")
        if len(verbalizer) < 2:
            raise InputError(f"verbalizer: expected words for at least two labels, got {dict(verbalizer)!r}")
        self.labels = tuple(verbalizer)
        self.max_length = max_length
        self._tokenizer = tokenizer
        self.template = template
        self.words = tuple(verbalizer.values())
        self._words = dict(verbalizer)
        at = names.index(_TEXT)
        self._before_text: list[Part] = [*self._parts[:at], (self._parts[at][0], None)]

        probe = self._fill("text", dict.fromkeys(template_columns(template), "text"))
        self.candidate_tokens = tuple(self._word_token(probe, word) for word in verbalizer.values())
        if len(set(self.candidate_tokens)) < len(self.labels):
            raise InputError(f"verbalizer: expected a different word for each label, got {self._words!r}")
        shortest = len(self._tokens(probe)) + 1
        if shortest > max_length:
            raise InputError(
                f"max_length: expected at least {shortest}, the template and two words, got {max_length}"
            )

    @property
    def fingerprint(self) -> str:
        """blake2b (16 bytes, in hex) over all that decides what an example becomes in tokens."""
        parts = [
            tokenizer_fingerprint(self._tokenizer),
            tokenizers.__version__,
            self.template,
            list(self._words.items()),
            self.max_length,
        ]
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample]:
        """Encode examples, keeping their order.

        Raises:
            InputError: an empty text, a label without a word, an example without a column of the template, a
                column so long that no room is left for the text, or a text that merges with the label word
                into other tokens.
        """
        wanted = set(template_columns(self.template))
        for example in examples:
            if example.label not in self._words:
                raise InputError(
                    f"verbalizer: expected a word for the label {example.label!r}, got words for "
                    f"{', '.join(map(repr, self.labels))} only"
                )
            if not example.text.strip():
                raise InputError(f"data: empty text with the label {example.label!r}")
            if missing := wanted - {name for name, _ in example.columns}:
                there = ", ".join([_TEXT, *(name for name, _ in example.columns)])
                raise InputError(
                    f"template: expected only columns of the data in braces ({there}), got {min(missing)!r}"
                )
        if not examples:
            return []
        prompts = self._tokenizer(
            [self._fill(example.text, dict(example.columns)) for example in examples]
        ).input_ids
        return [self._encode(example, tokens) for example, tokens in zip(examples, prompts, strict=True)]

    def ending(self, count: int) -> list[int]:
        """The last `count` tokens of a prompt, which are the same in all prompts.

        Raises:
            InputError: so many tokens depend on the text.
        """
        columns = template_columns(self.template)
        probes = [self._tokens(self._fill(text, dict.fromkeys(columns, text))) for text in _PROBES]
        shared = 0
        while len({tuple(probe[-shared - 1 :]) for probe in probes}) == 1:
            shared += 1
        if not 1 <= count <= shared:
            raise InputError(f"tail: expected 0 to {shared}, the tokens that end every prompt, got {count}")
        return probes[0][-count:]

    def _encode(self, example: Example, tokens: list[int]) -> EncodedExample:
        text, columns, label = example.text, dict(example.columns), self.labels.index(example.label)
        if len(tokens) >= self.max_length:
            text, tokens = self._truncate(text, columns, len(tokens))
        # Behind a slot the label word touches what fills it, and each example is a new case.
        if self._parts[-1][1] is not None:
            self._word_token(self._fill(text, columns), self._words[example.label])
        return EncodedExample([*tokens, self.candidate_tokens[label]], label)

    def _truncate(self, text: str, columns: Mapping[str, str], tokens: int) -> tuple[str, list[int]]:
        """The longest start of `text` that leaves room for all else, and the tokens of its prompt.

        Args:
            text: too long.
            columns: of the same example.
            tokens: how many its whole prompt has.
        """
        fits, found = -1, ("", list[int]())
        too_long, end, step = len(text), self._likely_end(text, columns, tokens), 1
        while too_long - fits > 1:
            if not fits < end < too_long:
                end = (fits + too_long) // 2
            start = text[:end].rstrip()
            prompt = self._tokens(self._fill(start, columns))
            if len(prompt) < self.max_length:
                fits, found = end, (start, prompt)
                end += step
            else:
                too_long = end
                end -= step
            step *= 2
        if fits < 0:
            least = len(self._tokens(self._fill("", columns))) + 1
            raise InputError(
                f"max_length: expected at least {least} for an example whose other columns are "
                f"{dict(columns)!r}, got {self.max_length}"
            )
        return found

    def _likely_end(self, text: str, columns: Mapping[str, str], tokens: int) -> int:
        """Where `text` would have to end if the tokens before its end did not depend on what follows."""
        too_many = tokens + 1 - self.max_length
        offsets = self._offsets(self._fill(text, columns))
        if offsets is None:
            return len(text) - round(too_many / tokens * len(text))
        first = len(_filled(self._before_text, columns))
        starts = [start - first for start, end in offsets if first <= start < end <= first + len(text)]
        if too_many > len(starts):
            return 0
        dropped = starts[-too_many]  # the first token to drop may begin with a space, which costs nothing
        return dropped + len(text[dropped:]) - len(text[dropped:].lstrip())

    def _offsets(self, prompt: str) -> list[tuple[int, int]] | None:
        """Where each token of the prompt begins and ends, in characters.

        None if the tokenizer does not tell, or changes characters: a device finds them by adding up tokens.
        """
        if not self._tokenizer.is_fast:
            return None
        backend: tokenizers.Tokenizer = self._tokenizer.backend_tokenizer
        encoding = backend.encode(prompt, add_special_tokens=False)
        return encoding.offsets if backend.decode(encoding.ids) == prompt else None

    def _fill(self, text: str, columns: Mapping[str, str]) -> str:
        return _filled(self._parts, {**columns, _TEXT: text})

    def _tokens(self, prompt: str) -> list[int]:
        return self._tokenizer(prompt).input_ids

    def _word_token(self, prompt: str, word: str) -> int:
        """The single token that `word` adds behind `prompt`.

        Both are tokenised together: a tokenizer may merge characters across the seam between them.
        """
        before, after = self._tokens(prompt), self._tokens(prompt + word)
        if after[:-1] != before:
            kept = len(os.path.commonprefix([before, after]))
            lost, added = (self._tokenizer.convert_ids_to_tokens(ids[kept:]) for ids in (before, after))
            raise InputError(
                f"verbalizer: the word {word!r} must be one token behind the prompt {prompt[-40:]!r}, "
                f"but it adds {added}" + (f" in place of {lost}" if lost else "")
            )
        if after[-1] == self._tokenizer.unk_token_id and self._tokenizer.unk_token != word.strip():
            raise InputError(f"verbalizer: the tokenizer has no token for the word {word!r}")
        return after[-1]


def _filled(parts: Sequence[Part], values: Mapping[str, str]) -> str:
    return "".join(plain + ("" if name is None else values[name]) for plain, name in parts)


def _parse_template(template: str) -> list[Part]:
    """Plain text and the name in braces behind it, in turn; None for no name."""
    with blame_input("template"):
        refuse_half_characters(template)
    try:
        parts = list(string.Formatter().parse(template))
    except ValueError as error:
        raise InputError(
            f"template: expected names in braces, and a brace to be shown doubled, got {template!r} "
            f"({first_line(error)})"
        ) from error
    if any(name == "" or form or conversion for _, name, form, conversion in parts):
        raise InputError(f"template: expected nothing but the name of a column in braces, got {template!r}")
    return [(plain, name) for plain, name, _, _ in parts]


def template_columns(template: str) -> tuple[str, ...]:
    """The names in braces in `template` other than ``text``, each once, in their order.

    Raises:
        InputError: a brace has no partner, or something else than a name is in braces.
    """
    names = (name for _, name in _parse_template(template) if name is not None)
    return tuple(dict.fromkeys(name for name in names if name != _TEXT))


def parse_verbalizer(text: str) -> dict[str, str]:
    """Read a verbalizer from JSON, e.g. ``{"0": " terrible", "1": " great"}``.

    Raises:
        InputError: not a JSON object of words.
    """
    try:
        value = strict_json.loads(text)
    except ValueError as error:
        raise InputError(
            f"verbalizer: expected a JSON object, got {shortened(text, 200)} ({first_line(error)})"
        ) from error
    words = value.values() if isinstance(value, dict) else [None]
    if not all(isinstance(word, str) and word.strip() for word in words):
        raise InputError(
            f"verbalizer: expected a JSON object that gives a word for each label, got {shortened(text, 200)}"
        )
    with blame_input("verbalizer"):
        for label_or_word in (*value, *words):
            refuse_half_characters(label_or_word)
    return value
