"""Prompts: what an example becomes in tokens, and which templates, words and texts are refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_texts import TEMPLATE, WORDS, reviews, tokenizer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mobizo_kernels.data import Example, PromptEncoder, parse_verbalizer, template_columns
from mobizo_kernels.errors import InputError

TAIL = tokenizer()(" It was").input_ids


def encoder(template: str = TEMPLATE, words: dict[str, str] = WORDS, max_length: int = 128) -> PromptEncoder:
    return PromptEncoder(tokenizer(), template, words, max_length)


def test_an_example_is_its_prompt_and_the_word_of_its_label() -> None:
    encode = encoder()
    for example, encoded in zip(reviews(), encode.encode(reviews()), strict=True):
        assert encoded.input_ids == tokenizer()(f"{example.text} It was{WORDS[example.label]}").input_ids
        assert encode.labels[encoded.label] == example.label
        assert encode.candidate_tokens[encoded.label] == encoded.input_ids[-1]


def test_candidate_tokens_follow_the_verbalizer() -> None:
    tokens = tokenizer().convert_ids_to_tokens(
        list(encoder(words={"b": " great", "a": " terrible"}).candidate_tokens)
    )
    assert tokens == ["Ġgreat", "Ġterrible"]


@given(text=st.text(min_size=1).filter(str.strip), spare=st.integers(1, 12))
def test_truncation_shortens_the_text_and_nothing_else(text: str, spare: int) -> None:
    max_length = len(tokenizer()("text It was").input_ids) + spare
    (encoded,) = encoder(max_length=max_length).encode([Example(text, "1")])
    (whole,) = encoder(max_length=10**6).encode([Example(text, "1")])
    assert encoded.input_ids[-1 - len(TAIL) : -1] == TAIL
    if len(whole.input_ids) <= max_length:
        assert encoded == whole
    else:
        assert len(encoded.input_ids) <= max_length
        kept = str(tokenizer().decode(encoded.input_ids[: -1 - len(TAIL)]))
        assert text.startswith(kept)


def test_truncation_keeps_as_much_as_fits() -> None:
    (encoded,) = encoder(max_length=20).encode([Example("The film is dull. " * 30, "0")])
    assert len(encoded.input_ids) == 20


QUESTION = "{text} Part {part}? {part}:"


def test_other_columns_fill_their_slots() -> None:
    (encoded,) = encoder(QUESTION).encode(
        [Example("The {part} of it", "1", (("part", "{text}"), ("x", "-")))]
    )
    assert tokenizer().decode(encoded.input_ids) == "The {part} of it Part {text}? {text}: great"


@given(text=st.text(min_size=1).filter(str.strip), part=st.text(), spare=st.integers(0, 12))
def test_truncation_spares_the_other_columns(text: str, part: str, spare: int) -> None:
    columns = (("part", part),)
    tail = tokenizer()(f" Part {part}? {part}:").input_ids
    max_length = len(tokenizer()(f"t Part {part}? {part}:").input_ids) + 1 + spare
    (encoded,) = encoder(QUESTION, max_length=max(18, max_length)).encode([Example(text, "1", columns)])
    assert len(encoded.input_ids) <= max(18, max_length)
    assert encoded.input_ids[-1 - len(tail) : -1] == tail


def test_column_that_leaves_no_room() -> None:
    encode = encoder(QUESTION, max_length=20)
    long = Example("The film", "1", (("part", "the old and tired score " * 9),))
    with pytest.raises(InputError, match=r"max_length: expected at least \d+ for an example .* got 20"):
        encode.encode([long])
    with pytest.raises(InputError, match=r"only columns of the data in braces \(text, part\), got 'x'"):
        encoder("{text} {x}").encode([Example("The film", "1", (("part", "1"),))])


def test_template_columns() -> None:
    assert template_columns("{b} {text} {a}{b} {my q} {{no}}") == ("b", "a", "my q")
    assert template_columns(TEMPLATE) == ()


def test_any_column_can_be_in_braces_and_a_doubled_brace_is_one() -> None:
    example = Example("The film", "1", (("my q", "why"), ("a.b", "{text}")))
    (encoded,) = encoder("{{{my q}}} {text}{a.b} {{a}}").encode([example])
    assert tokenizer().decode(encoded.input_ids) == "{why} The film{text} {a} great"


def test_truncation_behind_doubled_braces() -> None:
    (encoded,) = encoder("{{}} {text} It was", max_length=20).encode(
        [Example("The film is dull. " * 30, "0")]
    )
    kept = tokenizer().decode(encoded.input_ids)
    assert kept.startswith("{} The film is dull.") and kept.endswith(" It was terrible")
    assert len(encoded.input_ids) == 20


@pytest.mark.parametrize("template", ["{text} {", "{text} }", "{text} {a{b}}", "{text", "}{text}"])
def test_braces_that_do_not_pair(template: str) -> None:
    with pytest.raises(
        InputError, match="template: expected names in braces, and a brace to be shown doubled"
    ):
        encoder(template)


@pytest.mark.parametrize(
    "template", ["{text} {}", "{text!r}", "{text:>9}", "{text} {:}", "{text} {question!s}"]
)
def test_more_than_a_name_in_braces(template: str) -> None:
    with pytest.raises(InputError, match="template: expected nothing but the name of a column in braces"):
        template_columns(template)


def test_half_characters() -> None:
    with pytest.raises(InputError, match=r"template: has half a character .*: '{text} \\udcff'"):
        encoder("{text} \udcff")
    with pytest.raises(InputError, match="verbalizer: has half a character"):
        parse_verbalizer(r'{"0": " terrible", "1": " \ud83d"}')


def test_a_word_that_the_tokenizer_does_not_know() -> None:
    words = Tokenizer(models.WordLevel({"[UNK]": 0, "text": 1, "good": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    known = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    with pytest.raises(InputError, match="verbalizer: the tokenizer has no token for the word ' bad'"):
        PromptEncoder(known, "{text}", {"0": " bad", "1": " good"})


@pytest.mark.parametrize(
    ("template", "words", "max_length", "message"),
    [
        ("It was", WORDS, 128, "template: expected {text} exactly once, got 'It was'"),
        ("{text} {text}", WORDS, 128, "exactly once"),
        (TEMPLATE, {"0": " terrible"}, 128, "words for at least two labels"),
        (TEMPLATE, {"0": " terrible", "1": " terrific"}, 128, "' terrific' must be one token .* but it adds"),
        (TEMPLATE, {"0": " terrible", "1": " great great"}, 128, r"adds \['Ġgreat', 'Ġgreat'\]"),
        ("{text} It was ", {"0": "terrible", "1": "great"}, 128, r"adds \['Ġterrible'\] in place of \['Ġ'\]"),
        (TEMPLATE, {"0": " great", "1": " great"}, 128, "a different word for each label"),
        (TEMPLATE, WORDS, 4, r"max_length: expected at least \d+, .* got 4"),
    ],
)
def test_bad_template_or_words(template: str, words: dict[str, str], max_length: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoder(template, words, max_length)


def test_label_without_a_word() -> None:
    with pytest.raises(InputError, match="expected a word for the label 'x', got words for '0', '1' only"):
        encoder().encode([Example("fine", "1"), Example("fine", "x")])


def test_empty_text() -> None:
    with pytest.raises(InputError, match="empty text with the label '1'"):
        encoder().encode([Example(" \n", "1")])


def test_a_text_that_merges_with_the_word_is_refused() -> None:
    encode = encoder("{text}", {"0": "t", "1": "m"})
    encode.encode([Example("The plot", "0"), Example("The cas", "1")])
    with pytest.raises(
        InputError, match="the word 't' must be one token behind the prompt 'The cas', .* in place of"
    ):
        encode.encode([Example("The cas", "0")])


def test_no_examples() -> None:
    assert encoder().encode([]) == []


def test_parse_verbalizer() -> None:
    assert parse_verbalizer('{"0": " terrible", "1": " great"}') == WORDS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{0: 1}",
        "[]",
        '"great"',
        '{"0": 1}',
        '{"0": " "}',
        "null",
        '{"0": " a", "0": " b"}',
        "[" * 100_000,
    ],
)
def test_bad_verbalizer(text: str) -> None:
    with pytest.raises(InputError, match="verbalizer: expected a JSON object"):
        parse_verbalizer(text)
