"""Participants on tiny models, and the wire between them and a coordinator, in one process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import tiny
import torch
from helpers import assert_same_bits
from journals import adapters, wrapped

import mobizo_kernels as mobizo
from mobizo_kernels.rounds import Participant

SETTINGS: dict[str, Any] = {"queries": 3, "eps": 1e-2, "lr": 0.05, "run_seed": 11}


class Wire:
    """Carries payloads to participants by name and counts their bytes; those in `away` do not answer."""

    def __init__(self, sizes: Iterable[int], rng: torch.Generator, **settings: Any) -> None:
        self.settings = {**SETTINGS, **settings}
        self.rows = {name: tiny.batch(rng, (6,) * size) for name, size in enumerate(sizes)}
        self.participants = {name: self.made() for name in self.rows}
        self.away: set[int] = set()
        self.faults: dict[int, Any] = {}
        self.sent = self.received = self.calls = 0

    def made(self, **options: Any) -> Participant:
        return Participant(mobizo.ZerothOrder(wrapped(), **self.settings, **options))

    def __call__(self, payloads: Mapping[int, bytes]) -> Iterable[tuple[int, bytes | BaseException]]:
        self.calls += 1
        for name in reversed(payloads):  # not the order in which they were sent
            if name in self.away:
                continue
            self.sent += len(payloads[name])
            reply = self.participants[name].respond(payloads[name], lambda step, name=name: self.rows[name])
            self.received += len(reply)
            yield name, self.faults[name](reply) if name in self.faults else reply

    def assert_equal_adapters(self, names: Iterable[int]) -> None:
        first, *others = (adapters(self.participants[name].zo.model) for name in names)
        for other in others:
            for name, value in first.items():
                assert_same_bits(other[name], value)


def labelled_rows(rng: torch.Generator, count: int, label: int | None = None) -> dict[str, torch.Tensor]:
    """Random words of which the last but one tells the label; the answer is token 3 or 4."""
    given = torch.full((count,), label or 0)
    labels = torch.randint(0, 2, (count,), generator=rng) if label is None else given
    tokens = torch.randint(10, tiny.VOCABULARY, (count, 7), generator=rng)
    tokens[:, -2], tokens[:, -1] = 5 + labels, 3 + labels
    ignored = torch.full_like(tokens, -100)
    ignored[:, -1] = tokens[:, -1]
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": ignored}


@torch.no_grad()
def accuracy(model: Any, rows: dict[str, torch.Tensor]) -> float:
    """Of the likelier of both answers."""
    logits = model(rows["input_ids"][:, :-1]).logits[:, -1, [3, 4]]
    return (logits.argmax(1) == rows["labels"][:, -1] - 3).float().mean().item()
