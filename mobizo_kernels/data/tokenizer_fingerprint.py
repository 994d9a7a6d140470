"""Which tokenizer made some token ids, as one short hash."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from transformers import PreTrainedTokenizerBase


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """blake2b (16 bytes, in hex) over what decides which token ids a text gets.

    That is the definition of a fast tokenizer without its padding and truncation, which come and go with each
    call, and the vocabulary and merges of any other. Saving and loading keeps the fingerprint.
    """
    definition: dict[str, Any]
    if getattr(tokenizer, "backend_tokenizer", None) is not None:
        definition = json.loads(tokenizer_definition(tokenizer))
    else:
        merges = sorted(getattr(tokenizer, "bpe_ranks", {}).items(), key=lambda item: item[1])
        definition = {"vocab": tokenizer.get_vocab(), "merges": [list(pair) for pair, _ in merges]}
    text = json.dumps(definition, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def tokenizer_definition(tokenizer: PreTrainedTokenizerBase) -> str:
    """tokenizer.json of a fast tokenizer, without padding and truncation. On a device that file has the same
    fingerprint: executorch_ops/trainer/text/tokenizer_file.cpp.
    """
    definition = {**json.loads(tokenizer.backend_tokenizer.to_str()), "padding": None, "truncation": None}
    return json.dumps(definition, ensure_ascii=False)
