"""A chat template taken apart into the fixed texts between contents, for a device that has no Jinja.

A template is a program. What it does is found by rendering: conversations whose contents are known tell the
texts between them, and many more conversations have to come out the same from these texts. One that does not
is refused, with the reason.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from mobizo_kernels.data.chat import ChatEncoder
from mobizo_kernels.errors import InputError, first_line, shortened
from mobizo_kernels.executorch.description_texts import ChatDescription, Turn

Messages = Sequence[tuple[str, str]]

_NAMES = [f"Zq{letter}7Kx{letter}" for letter in "ABCDEF"]  # contents that stand nowhere else
# At the left and at the right of a content, of different lengths; "all" has no line feed at its ends.
_SPACE = {"newlines": ("\n\n", "\n\n\n"), "all": (" \t\n \t ", " \n\t ")}
_LITERAL = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"", re.DOTALL)
_CHARACTERS = " \n\t.,:;!?'\"`<>[]{}()|/\\&%$#@*-_=+~^09azAZäßé漢字😀\u00a0\u2028\x1f"
_TRIALS = 60


def take_apart(tokenizer: PreTrainedTokenizerBase) -> ChatDescription:
    """The pieces of the tokenizer's chat template.

    Raises:
        InputError: there is none, or it is no sequence of fixed texts and contents; the reason is the text.
    """
    encoder = ChatEncoder(tokenizer)  # raises where there is no template
    source = tokenizer.get_chat_template()
    if "strftime_now" in source:
        raise InputError("the chat template says what day it is, and its text is another each day")
    template = _Template(tokenizer)
    found = replace(
        template.pieces(),
        special=tuple(encoder.special_texts),
        end_tokens=tuple(sorted(encoder.end_tokens)),
    )
    for messages, begin in _trials(found.system is not None):
        _require_same(template, found, messages, begin)
    refused = _taken_for_more(template, found, _literals(source))
    return replace(found, refused=tuple(refused))


class _Template:
    """A template of a tokenizer, asked what it makes of conversations."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def rendered(self, messages: Messages, begin: bool) -> str:
        """As text. Raises InputError if the template does not take it."""
        turns = [{"role": role, "content": content} for role, content in messages]
        try:
            text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=begin)
        except Exception as error:  # whatever a template raises, or is broken in
            raise InputError(
                f"the chat template does not take {' and '.join(role for role, _ in messages)} "
                f"({first_line(error)})"
            ) from error
        assert isinstance(text, str)
        return text

    def pieces(self) -> ChatDescription:
        """The pieces by which known contents come out; whether all do is not known yet."""
        (user, earlier, again), generation = self._around(("user", "assistant", "user"), True)
        (_, answer), end = self._around(("user", "assistant"), False)
        system = behind = None
        if self._takes_systems():
            (system, behind), _ = self._around(("system", "user"), True)
        return ChatDescription(
            system=system,
            user=user,
            user_after_system=behind,
            user_after_answer=again,
            earlier_answer=earlier,
            answer=answer,
            generation_prompt=generation,
            end=end,
            special=(),
            end_tokens=(0,),
        )

    def _takes_systems(self) -> bool:
        try:
            self.rendered([("system", _NAMES[0]), ("user", _NAMES[1])], True)
        except InputError:
            return False
        return True

    def _around(self, roles: Sequence[str], begin: bool) -> tuple[list[Turn], str]:
        """The turn of each role, and the text behind the last content."""
        names = _NAMES[: len(roles)]
        bare = self._between(roles, names, begin)
        kept: list[dict[str, tuple[bool, bool]]] = [{} for _ in roles]  # at the left and at the right
        for kind, (left, right) in _SPACE.items():
            spaced = self._between(roles, names, begin, left, right)
            ends = [_ends(*gap, left, right) for gap in zip(bare, spaced, strict=True)]
            for index, ways in enumerate(kept):
                ways[kind] = ends[index][1], ends[index + 1][0]
        return [
            Turn(before=before, left=_trim(ways, 0), right=_trim(ways, 1))
            for before, ways in zip(bare, kept, strict=False)
        ], bare[-1]

    def _between(
        self, roles: Sequence[str], names: Sequence[str], begin: bool, left: str = "", right: str = ""
    ) -> list[str]:
        """The texts before, between and behind the names, which are contents with white space around them."""
        messages = [(role, left + name + right) for role, name in zip(roles, names, strict=True)]
        text, gaps = self.rendered(messages, begin), []
        for role, name in zip(roles, names, strict=True):
            before, found, text = text.partition(name)
            if not found or name in text:
                raise InputError(f"the chat template has the content of {role} not once and in turn")
            gaps.append(before)
        return [*gaps, text]


def _ends(bare: str, spaced: str, left: str, right: str) -> tuple[bool, bool]:
    """Whether the white space at the end of the content before a gap, and at the beginning of that behind it,
    is still there.
    """
    for before, behind in itertools.product((True, False), repeat=2):
        if spaced == right * before + bare + left * behind:
            return before, behind
    raise InputError("the chat template changes white space at the ends of a content in a way of its own")


def _trim(ways: dict[str, tuple[bool, bool]], side: int) -> str:
    lines, all_kinds = (not ways[kind][side] for kind in ("newlines", "all"))
    if all_kinds and not lines:
        raise InputError("the chat template takes away some white space at the ends of a content")
    return "all" if all_kinds else "newlines" if lines else "none"


def _require_same(template: _Template, found: ChatDescription, messages: Messages, begin: bool) -> None:
    if template.rendered(messages, begin) != found.rendered(messages, begin):
        shown = shortened(" / ".join(f"{role}: {content}" for role, content in messages), 80)
        raise InputError(f"the chat template is no sequence of fixed texts and contents, see {shown}")


def _trials(system: bool) -> Iterator[tuple[Messages, bool]]:
    """Conversations of one to five turns of each, of any characters, in both of their forms."""
    rng = random.Random(0)
    for trial in range(_TRIALS):
        turns = [(role, _content(rng)) for _ in range(trial % 5 + 1) for role in ("user", "assistant")]
        first = [("system", _content(rng))] if system and trial % 2 else []
        yield [*first, *turns[:-1]], True
        yield [*first, *turns], False


def _content(rng: random.Random) -> str:
    text = "".join(rng.choices(_CHARACTERS, k=rng.choice((1, 3, 30, 300))))
    return text if text.strip() else "a" + text + "b"


def _literals(source: str) -> list[str]:
    """The strings in a template that a content may hold: what it compares contents with is among them."""
    found = {"".join(groups) for groups in _LITERAL.findall(source)}
    unescaped = {text.replace("\\n", "\n").replace("\\'", "'").replace('\\"', '"') for text in found}
    return sorted(text.strip() for text in unescaped if text.strip())


def _taken_for_more(template: _Template, found: ChatDescription, literals: Sequence[str]) -> list[str]:
    """Which of the literals come out otherwise in some content than any text would."""
    refused: dict[str, None] = {}
    ways: list[tuple[str, str]] = [
        (one, way.format(one)) for one in literals for way in ("{}x", "x{}", "x{}y")
    ]
    ways += [(one, f"{one}x{other}") for one, other in itertools.permutations(literals, 2)]
    for literal, content in ways:
        if literal in refused or any(special in content for special in found.special):
            continue
        if any(text in content for text in refused):
            continue
        for messages, begin in _with_content(content, found.system is not None):
            try:
                _require_same(template, found, messages, begin)
            except InputError:
                refused[literal] = None
                break
    return sorted(refused)


def _with_content(content: str, system: bool) -> Iterator[tuple[Messages, bool]]:
    """Conversations in which each role says it, first and again."""
    roles = ("system",) * system + ("user", "assistant", "user")
    for index in range(len(roles)):
        messages = [(role, content if at == index else "hm") for at, role in enumerate(roles)]
        yield messages, True
        yield [*messages, ("assistant", "hm")], False
    yield [*((role, "hm") for role in roles), ("assistant", content)], False
