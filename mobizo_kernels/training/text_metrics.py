"""How good a written answer is beside a reference: exact match, F1 and ROUGE-L, each in [0, 1].

Exact match and F1 are those of SQuAD (arXiv 1606.05250, evaluate-v1.1.py): of texts in lower case without
punctuation and articles, F1 over the words that both have. ROUGE-L (Lin, 2004) is the F-measure over the
longest common subsequence of words, as the package rouge-score has it without stemming: words are runs of a-z
and 0-9.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_WORD = re.compile(r"[a-z0-9]+")


def exact_match(answer: str, reference: str) -> float:
    """1 if the normalised texts are the same, else 0."""
    return float(_normalised(answer) == _normalised(reference))


def f1(answer: str, reference: str) -> float:
    """Harmonic mean of the shares of words that each text has in common with the other."""
    ours, theirs = _normalised(answer), _normalised(reference)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return _harmonic(common, len(ours), len(theirs))


def rouge_l(answer: str, reference: str) -> float:
    """The same of words in order, which need not follow each other."""
    ours, theirs = (_WORD.findall(text.lower()) for text in (answer, reference))
    lengths = [0] * (len(theirs) + 1)
    for word in ours:
        before = 0
        for index, other in enumerate(theirs, 1):
            here = before + 1 if word == other else max(lengths[index], lengths[index - 1])
            before, lengths[index] = lengths[index], here
    return _harmonic(lengths[-1], len(ours), len(theirs))


METRICS: Mapping[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "f1": f1,
    "rouge_l": rouge_l,
}


def _normalised(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _harmonic(common: int, ours: int, theirs: int) -> float:
    """2 common / (ours + theirs); 0 where nothing is in common, as of two texts without words."""
    return 2 * common / (ours + theirs) if common else 0.0
