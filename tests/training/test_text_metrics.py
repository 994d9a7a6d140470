"""Exact match, F1 and ROUGE-L beside plain definitions of them."""

from __future__ import annotations

import random
from functools import cache

import pytest

from mobizo_kernels.training.text_metrics import exact_match, f1, rouge_l


@pytest.mark.parametrize(
    ("answer", "reference", "exact", "score", "rouge"),
    [
        ("9 apples", "9 apples", 1, 1, 1),
        ("The 9 apples!", "9 apples", 1, 1, 4 / 5),
        ("It is 9.", "9 apples", 0, 2 / 5, 2 / 5),
        ("apples 9", "9 apples", 0, 1, 1 / 2),
        ("the", "a", 1, 0, 0),
        ("", "9", 0, 0, 0),
        ("", "", 1, 0, 0),
        ("привет", "другой мир", 0, 0, 0),
        ("...", "?!", 1, 0, 0),
        ("b b c", "b c c", 0, 2 / 3, 2 / 3),
        ("Über-9", "ber 9", 0, 0, 1),
    ],
)
def test_known_pairs(answer: str, reference: str, exact: float, score: float, rouge: float) -> None:
    assert exact_match(answer, reference) == exact
    assert f1(answer, reference) == pytest.approx(score)
    assert rouge_l(answer, reference) == pytest.approx(rouge)


def test_random_texts() -> None:
    random_ = random.Random(0)
    for _ in range(200):
        ours, theirs = (random_.choices("bcde", k=random_.randrange(9)) for _ in range(2))

        @cache
        def longest(i: int, j: int, ours: tuple[str, ...], theirs: tuple[str, ...]) -> int:
            if not i or not j:
                return 0
            if ours[i - 1] == theirs[j - 1]:
                return 1 + longest(i - 1, j - 1, ours, theirs)
            return max(longest(i - 1, j, ours, theirs), longest(i, j - 1, ours, theirs))

        answer, reference, total = " ".join(ours), " ".join(theirs), len(ours) + len(theirs)
        common = longest(len(ours), len(theirs), tuple(ours), tuple(theirs))
        shared = sum(min(ours.count(word), theirs.count(word)) for word in "bcde")
        assert rouge_l(answer, reference) == pytest.approx(2 * common / total if total else 0)
        assert f1(answer, reference) == pytest.approx(2 * shared / total if total else 0)
        assert exact_match(answer, reference) == (ours == theirs)
