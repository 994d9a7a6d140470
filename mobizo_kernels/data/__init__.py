"""Labelled texts and prompts: everything between a file and a batch of tokens."""

from mobizo_kernels.data.answer_tasks import ANSWER_TASKS, load_conversations
from mobizo_kernels.data.batches import collate, evaluation_batches, training_batches, training_order
from mobizo_kernels.data.chat import Answers, ChatEncoder
from mobizo_kernels.data.conversations import (
    Conversation,
    ConversationSplits,
    question,
    read_conversations,
    split_conversations,
)
from mobizo_kernels.data.datasets import Example, Splits
from mobizo_kernels.data.prompts import EncodedExample, PromptEncoder, parse_verbalizer, template_columns
from mobizo_kernels.data.tasks import ROTTEN_TOMATOES, TASKS, load_splits
from mobizo_kernels.data.token_cache import CachingEncoder
from mobizo_kernels.data.tokenized import (
    TokenizedDataset,
    examples_fingerprint,
    read_dataset,
    write_dataset,
)
from mobizo_kernels.data.tokenizer_fingerprint import tokenizer_definition, tokenizer_fingerprint

__all__ = [
    "ANSWER_TASKS",
    "Answers",
    "ChatEncoder",
    "Conversation",
    "ConversationSplits",
    "ROTTEN_TOMATOES",
    "TASKS",
    "CachingEncoder",
    "EncodedExample",
    "Example",
    "PromptEncoder",
    "Splits",
    "TokenizedDataset",
    "collate",
    "evaluation_batches",
    "examples_fingerprint",
    "load_conversations",
    "load_splits",
    "parse_verbalizer",
    "question",
    "read_conversations",
    "read_dataset",
    "split_conversations",
    "template_columns",
    "tokenizer_definition",
    "tokenizer_fingerprint",
    "training_batches",
    "training_order",
    "write_dataset",
]
