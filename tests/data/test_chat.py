"""Answers found among the tokens that a chat template makes of a conversation."""

from __future__ import annotations

import pytest
from tiny_texts import CHAT_TEMPLATE, chat_tokenizer, questions, tokenizer

from mobizo_kernels.data import ChatEncoder, Conversation, question
from mobizo_kernels.errors import InputError

TALK = Conversation(
    (
        ("system", "Be dull."),
        ("user", "The film?"),
        ("assistant", "is slow"),
        ("user", "Yes"),
        ("assistant", "ok"),
    )
)
# Of the shapes that are about: no generation prompt, a system text of its own, an earlier answer that is
# rendered otherwise.
TEMPLATES = {
    "chatml": CHAT_TEMPLATE,
    "instructions": "{% for m in messages %}{% if m.role == 'assistant' %} {{ m.content }}</s>{% else %}"
    "<|start|>{{ m.content }}<|end|>{% endif %}{% endfor %}",
    "own system": "<|start|>system\nAn old score.<|end|>" + CHAT_TEMPLATE,
    "shortened": "{% for m in messages %}<|start|>{{ m.role }}\n"
    "{{ m.content if loop.last or m.role != 'assistant' else 'cut' }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}",
}  # fmt: skip


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_end_with_the_token_that_ends_a_turn(name: str) -> None:
    made = chat_tokenizer(TEMPLATES[name])
    rows = ChatEncoder(made).encode([TALK])
    assert [row.label for row in rows] == [-1, -1]
    answers = [made.decode(row.input_ids[-row.targets :]) for row in rows]
    end = "</s>" if name == "instructions" else "<|end|>"
    assert [answer.strip() for answer in answers] == [f"is slow{end}", f"ok{end}"]
    for row, turns in zip(rows, (2, 4), strict=True):
        before = [{"role": role, "content": content} for role, content in TALK.messages[:turns]]
        prompt = made.apply_chat_template(before, tokenize=False, add_generation_prompt=True)
        assert made.decode(row.input_ids[: -row.targets]) == prompt
    assert ChatEncoder(made).encode([TALK], "last") == rows[1:]


def test_the_invocation_is_the_generation_prompt() -> None:
    made = chat_tokenizer()
    encoder = ChatEncoder(made)
    assert made.decode(encoder.invocation) == "<|start|>assistant\n"
    rows = encoder.encode([question(row["prompt"], row["response"]) for row in questions(5)])
    count = len(encoder.invocation)
    for row in rows:
        assert row.input_ids[-row.targets - count : -row.targets] == encoder.invocation
    assert encoder.prompt((("user", questions(1)[0]["prompt"]),)) == rows[0].input_ids[: -rows[0].targets]
    # Without a special token an answer could hold it again.
    plain = CHAT_TEMPLATE.replace("<|start|>assistant", "assistant:")
    assert ChatEncoder(chat_tokenizer(plain)).invocation == []
    assert ChatEncoder(chat_tokenizer(TEMPLATES["instructions"])).invocation == []


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHAT_TEMPLATE + "{{ messages | length }}", "the chat template of the model begins .* otherwise"),
        (
            # The answer "at" and the end of the generation prompt merge into " great".
            "{% for m in messages %}<|start|>It was gre{{ m.content }}<|end|>{% endfor %}"
            "{% if add_generation_prompt %}<|start|>It was gre{% endif %}",
            "begins a conversation otherwise",
        ),
        (CHAT_TEMPLATE.replace("<|end|>", "."), "model: its chat template ends an answer with no spec"),
        (CHAT_TEMPLATE.replace("message.content", "message.content[:-2]"), "leaves nothing of an answer"),
        ("{% if messages[1:] %}{{ raise_exception('no answers') }}{% endif %}", "does not take it .*no ans"),
    ],
)  # fmt: skip
def test_templates_that_hide_an_answer_are_refused(template: str, message: str) -> None:
    row = question("Why?", "at", "chat.jsonl line 7")
    with pytest.raises(InputError, match=message) as caught:
        ChatEncoder(chat_tokenizer(template)).encode([row])
    assert "chat.jsonl line 7" in str(caught.value) or str(caught.value).startswith("model: ")


def test_rows_that_do_not_fit_are_refused() -> None:
    made = chat_tokenizer()
    row = question("Why is it so?", "so", "chat.jsonl line 7")
    (encoded,) = ChatEncoder(made).encode([row])
    length, answer = len(encoded.input_ids), encoded.targets
    assert ChatEncoder(made, length).encode([row]) == [encoded]
    with pytest.raises(InputError) as caught:
        ChatEncoder(made, length - 1).encode([row])
    assert str(caught.value) == (
        f"data: chat.jsonl line 7 has {length} tokens, {length - answer} of its prompt and {answer} of its "
        f"answer, and {length - 1} fit (--max-length)"
    )


def test_special_tokens_in_a_message_are_refused() -> None:
    for pair in (("a<|end|>", "b"), ("a", "<|start|>assistant\nb")):
        with pytest.raises(InputError, match=r"line 2 holds the special token '<\|"):
            ChatEncoder(chat_tokenizer()).encode([question(*pair, "chat.jsonl line 2")])


def test_without_a_template_there_are_no_free_answers() -> None:
    with pytest.raises(InputError, match="model: its tokenizer has no chat template"):
        ChatEncoder(tokenizer())
