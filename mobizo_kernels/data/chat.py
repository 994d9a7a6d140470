"""Turn conversations into tokens by the chat template of a tokenizer, and find the answers among them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from mobizo_kernels.choices import Answers as Answers
from mobizo_kernels.data.conversations import Conversation
from mobizo_kernels.data.prompts import EncodedExample
from mobizo_kernels.errors import InputError, first_line, shortened

Messages = Sequence[tuple[str, str]]


class ChatEncoder:
    """Encodes conversations for one tokenizer.

    An answer is found by rendering what comes before it, as the template begins an answer, and then the same
    with the answer; the first has to be the beginning of the second, as text and in tokens. Nothing else is
    asked of a template. The answer ends with the special token that ends the turn.

    Args:
        tokenizer: with a chat template.
        max_length: the most tokens of a row, prompt and answer.

    Attributes:
        max_length: as given.
        generation_prompt: the tokens by which the template begins an answer, e.g. those of
            ``<|im_start|>assistant\\n``; empty if it has none.
        end_tokens: the special tokens: one of them ends an answer.
        special_texts: the special tokens as text, which no message may hold.

    Raises:
        InputError: the tokenizer has no chat template, or one that cannot render a question.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_length: int = 512) -> None:
        if not getattr(tokenizer, "chat_template", None):
            raise InputError("model: its tokenizer has no chat template, which free answers need")
        self._tokenizer, self.max_length = tokenizer, max_length
        added = tokenizer.added_tokens_decoder
        self.end_tokens = {token for token, what in added.items() if what.special}
        self.end_tokens |= set(tokenizer.all_special_ids)
        self.special_texts = [
            str(tokenizer.convert_ids_to_tokens(token)) for token in sorted(self.end_tokens)
        ]
        self.end_tokens -= {tokenizer.unk_token_id}  # stands for a word
        probe = (("user", "text"),)
        before, begun = (self._tokens(self._rendered(probe, begin)) for begin in (False, True))
        self.generation_prompt = begun[len(before) :] if begun[: len(before)] == before else []

    def encode(self, rows: Sequence[Conversation], answers: Answers = "all") -> list[EncodedExample]:
        """A row for each answer: what was said before it, and the answer with the token that ends it.

        Args:
            rows: conversations.
            answers: "all" of each, in their order, or the "last" one.

        Raises:
            InputError: naming the row, if the template cannot render it, or renders it otherwise once the
                answer is there; if a message holds a special token; or if the tokens are more than
                `max_length`.
        """
        wanted = [
            (row, index) for row in rows for index in (row.answers if answers == "all" else row.answers[-1:])
        ]
        for row in rows:
            self._check(row.messages, row.where)
        prompts = [self._rendered(row.messages[:index], True, row.where) for row, index in wanted]
        wholes = [self._rendered(row.messages[: index + 1], False, row.where) for row, index in wanted]
        if not wanted:
            return []
        before, after = (
            self._tokenizer(texts, add_special_tokens=False).input_ids for texts in (prompts, wholes)
        )
        return [
            self._row(prompt, whole, short, long, row.where)
            for (row, _), prompt, whole, short, long in zip(
                wanted, prompts, wholes, before, after, strict=True
            )
        ]

    def prompt(self, messages: Messages) -> list[int]:
        """What was said, ending with the user's turn, and the beginning of an answer, in tokens.

        Raises:
            InputError: the template cannot render it, or a message holds a special token.
        """
        self._check(messages, "the prompt")
        return self._tokens(self._rendered(messages, True, "the prompt"))

    @property
    def invocation(self) -> list[int]:
        """The tokens from which an Activated LoRA acts: the generation prompt, if it has a special token,
        which no message holds, so that its last occurrence is where the answer begins; otherwise none.
        """
        return self.generation_prompt if self.end_tokens & set(self.generation_prompt) else []

    def _row(
        self, prompt: str, whole: str, before: list[int], tokens: list[int], where: str
    ) -> EncodedExample:
        if not whole.startswith(prompt) or tokens[: len(before)] != before:
            raise InputError(
                f"data: {where}: the chat template of the model begins a conversation otherwise once the "
                "answer is there, so the answer's tokens cannot be told"
            )
        ends = [index for index in range(len(before), len(tokens)) if tokens[index] in self.end_tokens]
        if not ends:
            raise InputError("model: its chat template ends an answer with no special token")
        if ends[0] == len(before):
            raise InputError(f"data: {where}: the chat template of the model leaves nothing of an answer")
        length = ends[0] + 1
        if length > self.max_length:
            raise InputError(
                f"data: {where} has {length} tokens, {len(before)} of its prompt and {length - len(before)} "
                f"of its answer, and {self.max_length} fit (--max-length)"
            )
        return EncodedExample(tokens[:length], -1, length - len(before))

    def _check(self, messages: Messages, where: str) -> None:
        """Raise InputError if a message holds a special token: it would end a turn, or begin one."""
        for token, (_, content) in itertools.product(self.special_texts, messages):
            if token in content:
                raise InputError(f"data: {where} holds the special token {token!r} in {shortened(content)}")

    def _rendered(self, messages: Messages, begin: bool, where: str = "a question") -> str:
        """The conversation as text, with the beginning of an answer or without."""
        turns = [{"role": role, "content": content} for role, content in messages]
        try:
            text = self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=begin)
        except Exception as error:  # whatever a template raises, or is broken in
            raise InputError(
                f"data: {where}: the chat template of the model does not take it ({first_line(error)})"
            ) from error
        assert isinstance(text, str)
        return text

    def _tokens(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False).input_ids
