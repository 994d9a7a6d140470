"""A small tokenizer and small labelled texts, made on the spot."""

from __future__ import annotations

import copy
import csv
import itertools
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from tiny import SIZES, causal_lm
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from mobizo_kernels.data import Example

TEMPLATE = "{text} It was"
WORDS = {"0": " terrible", "1": " great"}

_SUBJECTS = (
    "The film",
    "A plot",
    "This cast",
    "Every scene",
    "One long ending",
    "The old and tired score of it",
)
_VERDICTS = {"0": ("is dull", "feels slow", "looks cheap"), "1": ("is warm", "feels fresh", "looks fine")}


def reviews(copies: int = 4) -> list[Example]:
    """36 * copies different short texts, half of each label "0" and "1"."""
    return [
        Example(f"{subject} {verdict}, part {part}.", label)
        for part, subject in itertools.product(range(copies), _SUBJECTS)
        for label, verdicts in _VERDICTS.items()
        for verdict in verdicts
    ]


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without a pad token; " great" and " terrible" are single tokens, " terrific" is not."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    corpus = [TEMPLATE.format(text=example.text) + WORDS[example.label] for example in reviews()]
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="</s>")


def save_model(directory: Path, **options: int) -> Path:
    """A tiny random Llama with `tokenizer()`, as files of transformers in `directory`."""
    sizes = {
        **SIZES,
        "vocab_size": len(tokenizer()),
        "max_position_embeddings": 128,
        "pad_token_id": None,
        **options,
    }
    causal_lm(LlamaConfig(**sizes, num_key_value_heads=2)).save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory


def write_csv(path: Path, examples: Sequence[Example], columns: tuple[str, str] = ("text", "label")) -> Path:
    """`examples` as a CSV file with a header."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows((example.text, example.label) for example in examples)
    return path


CHAT_TEMPLATE = (
    "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def chat_tokenizer(template: str = CHAT_TEMPLATE) -> PreTrainedTokenizerFast:
    """`tokenizer()` with a chat template and the special tokens of it."""
    made = copy.deepcopy(tokenizer())
    made.add_special_tokens({"additional_special_tokens": ["<|start|>", "<|end|>"]})
    made.chat_template = template
    return made


def save_chat_model(directory: Path, template: str = CHAT_TEMPLATE, **changes: int) -> Path:
    """A tiny random Llama with `chat_tokenizer()`, as files of transformers in `directory`."""
    made = chat_tokenizer(template)
    save_model(directory, vocab_size=len(made), **changes)
    made.save_pretrained(directory)
    return directory


def questions(count: int = 40) -> list[dict[str, str]]:
    """Rows of a chat file: the answer repeats two words of the question."""
    subjects, verdicts = itertools.cycle(_SUBJECTS), itertools.cycle(_VERDICTS["0"] + _VERDICTS["1"])
    rows = zip(range(count), subjects, verdicts, strict=False)
    return [
        {"prompt": f"{subject} {verdict}, part {number}. How?", "response": verdict.split()[1]}
        for number, subject, verdict in rows
    ]


def write_jsonl(path: Path, rows: Sequence[object]) -> Path:
    """Objects as lines of JSON."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
