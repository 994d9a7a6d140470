"""What a program says of the texts that its tokens are made of: the prompt, and the chat template in pieces.

executorch_ops/trainer/program/texts.cpp is the native twin: the same fields, checks and sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mobizo_kernels.executorch.description_readers import Reader, list_of, object_of, or_null, text, whole

TRIMS = ("none", "newlines", "all")
"""What a template takes away at one end of a content: nothing, line feeds, or all white space."""


@dataclass(frozen=True, kw_only=True)
class PromptDescription:
    """How a labelled text becomes a row.

    Attributes:
        template: the prompt, ``{text}`` in it: see :class:`mobizo_kernels.data.PromptEncoder`.
        labels: different names.
        words: of the labels, in their order, as many as the program has candidate tokens.
    """

    template: str
    labels: tuple[str, ...]
    words: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.words):
            raise ValueError(f"expected a word for each of {len(self.labels)} labels, got {len(self.words)}")
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels must be different")
        if "" in self.words:
            raise ValueError("words must not be empty")


@dataclass(frozen=True, kw_only=True)
class Turn:
    """What a chat template does around the content of a message.

    Attributes:
        before: the text between the content of the message before it, or the beginning, and its own.
        left: what it takes away at the beginning of the content, one of `TRIMS`.
        right: the same at its end.
    """

    before: str
    left: str = "none"
    right: str = "none"

    def __post_init__(self) -> None:
        for name in ("left", "right"):
            if getattr(self, name) not in TRIMS:
                raise ValueError(f"{name} must be one of {', '.join(TRIMS)}, got '{getattr(self, name)}'")

    def rendered(self, content: str) -> str:
        """The message as the template has it."""
        content = {"none": content, "newlines": content.lstrip("\n"), "all": content.lstrip()}[self.left]
        content = {"none": content, "newlines": content.rstrip("\n"), "all": content.rstrip()}[self.right]
        return self.before + content


@dataclass(frozen=True, kw_only=True)
class ChatDescription:
    """A chat template taken apart into the fixed texts between the contents of messages.

    Attributes:
        system: a system's message, which begins a conversation; None if the template takes none.
        user: a user's that begins one. What a template says by itself, such as a system's message of its own,
            is in here.
        user_after_system: a user's behind the system's; None as `system`.
        user_after_answer: a user's behind an answer.
        earlier_answer: an answer that others follow.
        answer: the last one.
        generation_prompt: behind the last user's content, where an answer is to begin.
        end: behind the last answer's content.
        special: the special tokens, which no message may hold.
        end_tokens: the ids of those that end an answer.
        refused: texts that the template takes for more than texts, which no message may hold either.
    """

    system: Turn | None
    user: Turn
    user_after_system: Turn | None
    user_after_answer: Turn
    earlier_answer: Turn
    answer: Turn
    generation_prompt: str
    end: str
    special: tuple[str, ...]
    end_tokens: tuple[int, ...]
    refused: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.system is None) != (self.user_after_system is None):
            raise ValueError("system and user_after_system must be both given, or both null")
        for name in ("special", "refused"):
            if "" in getattr(self, name):
                raise ValueError(f"{name} must not be empty texts")
        if not self.end_tokens:
            raise ValueError("end_tokens must be at least 1")
        if min(self.end_tokens) < 0:
            raise ValueError(f"end_tokens must be from 0, got {min(self.end_tokens)}")

    def rendered(self, messages: Sequence[tuple[str, str]], begin: bool) -> str:
        """What the template makes of a conversation.

        Args:
            messages: role and content of each, "user" and "assistant" in turn, perhaps behind a "system".
            begin: that ends with a user's message, whose answer is to begin; else it ends with an answer.

        Raises:
            ValueError: there is a system's message, and the template takes none.
        """
        text, before = "", "start"
        for index, (role, content) in enumerate(messages):
            text += self._turn(role, before, index + 1 == len(messages)).rendered(content)
            before = role
        return text + (self.generation_prompt if begin else self.end)

    def _turn(self, role: str, before: str, last: bool) -> Turn:
        if role == "assistant":
            return self.answer if last else self.earlier_answer
        turn = self.system if role == "system" else {
            "start": self.user, "system": self.user_after_system, "assistant": self.user_after_answer
        }[before]  # fmt: skip
        if turn is None:
            raise ValueError("the chat template takes no system's message")
        return turn


@dataclass(frozen=True, kw_only=True)
class TextsDescription:
    """The texts of a program: what it takes of them, and why it takes no more.

    Attributes:
        prompt: of labelled texts; None if the program was exported without one.
        chat: of conversations; None if there is no chat template that can be taken apart.
        no_chat: why there is none, else None.
    """

    prompt: PromptDescription | None
    chat: ChatDescription | None
    no_chat: str | None

    def __post_init__(self) -> None:
        if (self.chat is None) == (self.no_chat is None):
            raise ValueError("expected one of chat and no_chat, and null for the other")


_turn = object_of(Turn, dict.fromkeys(("before", "left", "right"), text))

read_texts: Reader = object_of(
    TextsDescription,
    {
        "prompt": or_null(
            object_of(PromptDescription, {"template": text, "labels": list_of(text), "words": list_of(text)})
        ),
        "chat": or_null(
            object_of(
                ChatDescription,
                {
                    "system": or_null(_turn),
                    "user": _turn,
                    "user_after_system": or_null(_turn),
                    **dict.fromkeys(("user_after_answer", "earlier_answer", "answer"), _turn),
                    "generation_prompt": text,
                    "end": text,
                    "special": list_of(text),
                    "end_tokens": list_of(whole),
                    "refused": list_of(text),
                },
            )
        ),
        "no_chat": or_null(text),
    },
)
"""What makes a `TextsDescription` of the JSON that stands under "texts"."""
