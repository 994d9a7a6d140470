"""Conversations from a file, and their split."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tiny_texts import questions, write_jsonl

from mobizo_kernels.data import Conversation, question, read_conversations, split_conversations
from mobizo_kernels.errors import InputError

TURNS = [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d")]


def messages(*turns: tuple[str, str]) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def test_rows_are_read_with_their_lines(tmp_path: Path) -> None:
    rows = [{"prompt": " why? ", "response": "so\n", "id": 3}, messages(("system", "be kind"), *TURNS)]
    path = write_jsonl(tmp_path / "chat.jsonl", rows)
    found = read_conversations(path)
    assert found == [question("why?", "so"), Conversation((("system", "be kind"), *TURNS))]
    assert [row.where for row in found] == [f"{path} line 1", f"{path} line 2"]
    assert found[1].answers == (2, 4)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a"}, "has neither 'prompt' and 'response' nor 'messages', only 'prompt'"),
        ({"text": "a", "label": 1}, "has neither .*; texts with labels need --template and --verbalizer"),
        ({"prompt": "a", "response": "b", "messages": []}, "has 'prompt' and 'messages', expected one"),
        ({"prompt": "a", "response": " \n"}, "has an empty 'response'"),
        ({"prompt": "", "response": "b"}, "has an empty 'prompt'"),
        ({"prompt": "a", "response": 5}, "has a number for 'response', expected a string"),
        ({"prompt": "a", "response": "\ud800"}, "is not JSON .has half a character"),
        ({"messages": []}, r"has no list of messages, but '\[\]'"),
        ({"messages": "hello"}, "has no list of messages"),
        ({"messages": [{"role": "user"}]}, "has in message 1 not 'role' and 'content', but 'role'"),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "has in message 1 not 'role'"),
        (messages(("bot", "a")), "has the role 'bot' in message 1, expected 'system', 'user'"),
        (messages(("assistant", "a")), "has the role 'assistant' in message 1, expected 'user'"),
        (messages(*TURNS, ("assistant", "a")), "has the role 'assistant' in message 5, expected 'user'"),
        (messages(("user", "a"), ("system", "b")), "has the role 'system' in message 2, expected 'assist"),
        (messages(*TURNS, ("user", "a")), "ends without an answer of the assistant"),
        (messages(("system", "a")), "ends without an answer of the assistant"),
        (messages(("user", "a"), ("assistant", " ")), "has an empty 'content'"),
    ],
)
def test_what_is_refused(row: dict[str, object], message: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "chat.jsonl", [*questions(2), row])
    with pytest.raises(InputError, match=rf"^data: .*chat.jsonl line 3 {message}"):
        read_conversations(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected FILE.jsonl, got 'chat.csv'"):
        read_conversations(Path("chat.csv"))
    (tmp_path / "chat.jsonl").write_text("")
    with pytest.raises(InputError, match="has no rows"):
        read_conversations(tmp_path / "chat.jsonl")


def test_a_split_depends_on_the_texts_alone() -> None:
    rows = [question(row["prompt"], row["response"]) for row in questions(200)]
    rows += [question(row.messages[0][1], "another answer") for row in rows[:50]]
    split = split_conversations(rows)
    again = split_conversations(random.Random(1).sample(rows, len(rows)) + rows[:20])
    assert again == split
    parts = (split.train, split.validation, split.test)
    assert sorted(map(len, parts)) == pytest.approx([25, 50, 175], abs=2)
    openings = [{row.messages[0] for row in part} for part in parts]
    assert not openings[0] & openings[1] and not openings[1] & openings[2] and not openings[0] & openings[2]


def test_a_question_stays_together_whatever_the_system_was_told() -> None:
    rows = [
        Conversation((("system", told), ("user", f"why {n}?"), ("assistant", f"{told} {n}")), "row")
        for n in range(30)
        for told in ("be kind", "be short", "rhyme")
    ]
    split = split_conversations(rows)
    asked = [{row.messages[1] for row in part} for part in (split.train, split.validation, split.test)]
    assert sum(map(len, asked)) == len(set().union(*asked)) == 30


def talk(*questions: str) -> Conversation:
    """One with an answer to each question."""
    return Conversation(tuple(turn for text in questions for turn in (("user", text), ("assistant", "yes"))))


def test_a_frequent_opening_is_split_by_what_follows() -> None:
    rows = [talk("hi", "how are you?", f"why {n // 2}?", str(n)) for n in range(1000)]
    split = split_conversations(rows)
    assert sorted(map(len, (split.train, split.validation, split.test))) == pytest.approx(
        [100, 200, 700], abs=2
    )
    asked = [{row.questions[:3] for row in part} for part in (split.train, split.validation, split.test)]
    assert sum(map(len, asked)) == 500 == len(set().union(*asked))


def test_an_opening_of_a_tenth_of_the_rows_stays_together() -> None:
    rows = [talk("hi", str(n)) for n in range(10)] + [talk(f"why {n}?", str(n)) for n in range(90)]
    split = split_conversations(rows)
    greeted = [
        sum(row.questions[0] == "hi" for row in part) for part in (split.train, split.validation, split.test)
    ]
    assert sorted(greeted) == [0, 0, 10]
    split = split_conversations([*rows, talk("hi")])
    parts = (split.train, split.validation, split.test)
    assert sorted(map(len, parts)) == pytest.approx([10, 20, 70], abs=1)
    assert sum(talk("hi") in part for part in parts) == 1


def test_too_few_questions_are_refused() -> None:
    with pytest.raises(InputError, match="at least 3 different questions .* got 2"):
        split_conversations([question("a", "b"), question("a", "c"), question("b", "c")])
    with pytest.raises(InputError, match="most rows begin with one question"):
        split_conversations([question(str(n // 97), str(n)) for n in range(100)] + [question("x", "y")])
    same = [talk(*["hi"] * 2000), talk(*["hi"] * 2000, "so"), talk("hi")]
    assert len(split_conversations(same).test) == 1
