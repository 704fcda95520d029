"""How much the thoughts of one prompt differ from each other, and how much of them is copied from training thoughts.

Words are runs of letters and digits; every other character that is no white space is a word of its own.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

_WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """The words of a text: "3+4 = 7." has six."""
    return _WORD.findall(text)


def unique_share(texts: Sequence[str]) -> float:
    """Distinct texts over all texts, white space folded: 1/n where all n are the same, 1 where none are."""
    return len({" ".join(text.split()) for text in texts}) / len(texts)


def distinct_n(texts: Sequence[str], n: int = 2) -> float | None:
    """Distinct word n-grams over all word n-grams of the texts; None where there are none.

    Li et al. 2016, https://arxiv.org/abs/1510.03055, section 5.
    """
    split = [words(text) for text in texts]
    grams = [tuple(text[i : i + n]) for text in split for i in range(len(text) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def self_bleu(texts: Sequence[str]) -> float | None:
    """The mean of `self_bleus`, 1 where all texts are the same; None where fewer than two have a word."""
    scores = [score for score in self_bleus(texts) if score is not None]
    return sum(scores) / len(scores) if scores else None


def self_bleus(texts: Sequence[str]) -> list[float | None]:
    """The sentence BLEU of each text against all others, 0 to 1; None for one without a word, or if no other has one.

    Zhu et al. 2018 (Texygen), https://arxiv.org/abs/1802.01886; BLEU is sacrebleu's, over `words`.
    """
    from sacrebleu.metrics import BLEU

    metric, split = (
        BLEU(effective_order=True, tokenize="none"),
        [" ".join(words(text)) for text in texts],
    )
    scores: list[float | None] = [None] * len(texts)
    for i, text in enumerate(split):
        others = [other for other in split[:i] + split[i + 1 :] if other]
        if text and others:
            scores[i] = min(
                metric.sentence_score(text, others).score / 100, 1.0
            )  # which rounds above
    return scores


def way_entropy(ways: Sequence[str | None]) -> float | None:
    """The entropy in bits of the ways of thinking that could be told: 2 for four in equal parts; None where none could.

    The plug-in estimate (Shannon 1948), which from n samples is too low and at most log2(n).
    """
    counts = Counter(way for way in ways if way is not None)
    total = counts.total()
    return math.fsum(c / total * math.log2(total / c) for c in counts.values()) if total else None


def run_lengths(texts: Sequence[str], training: Sequence[str]) -> list[np.ndarray]:
    """Of each text and word, how many words from there on stand in one piece in a training text.

    All texts are ranked together by their first 1, 2, 4, ... words, until no two are equal (prefix doubling: Manber
    and Myers 1993, https://doi.org/10.1137/0222058). The longest match of a word is then with its nearest training
    neighbour in that order, before it or after it.

    Returns:
        For each text (its words,) integers.

    Raises ValueError where there is no training text.
    """
    if not training:
        raise ValueError("training is empty: the texts of training thoughts wanted")
    split = [words(text) for text in [*training, *texts]]
    known: dict[str, int] = {}
    ids = [
        [known.setdefault(word, len(known)) for word in text] + [-1 - i]
        for i, text in enumerate(split)
    ]
    starts = np.cumsum([0, *map(len, ids)])
    ranks = [
        np.unique(np.concatenate(ids), return_inverse=True)[1]
    ]  # each text ends in a word of its own
    while ranks[-1].max() + 1 < len(ranks[-1]):
        step = 1 << (len(ranks) - 1)
        after = np.append(ranks[-1][step:] + 1, np.zeros(min(step, len(ranks[-1])), int))
        ranks.append(np.unique(ranks[-1] * (len(after) + 1) + after, return_inverse=True)[1])
    order = np.argsort(ranks[-1])
    is_training = order < starts[len(training)]
    place = np.arange(len(order))
    before = np.maximum.accumulate(np.where(is_training, place, 0))
    after = np.minimum.accumulate(np.where(is_training, place, len(order) - 1)[::-1])[::-1]
    longest = np.zeros(len(order), int)
    for neighbour in (before, after):
        pairs = order[~is_training], order[neighbour][~is_training]
        longest[pairs[0]] = np.maximum(
            longest[pairs[0]], _common(ranks, *pairs, starts[len(training)])
        )
    return [
        longest[a : b - 1]
        for a, b in zip(starts[len(training) : -1], starts[len(training) + 1 :], strict=True)
    ]


def _common(ranks: list[np.ndarray], a: np.ndarray, b: np.ndarray, training: int) -> np.ndarray:
    """How many words from a on equal those from b on, which stand in the first `training` words; else 0."""
    common, is_training = np.zeros(len(a), int), b < training
    for level in reversed(range(len(ranks))):
        at = np.minimum(a + common, len(ranks[0]) - 1), np.minimum(b + common, len(ranks[0]) - 1)
        common += (ranks[level][at[0]] == ranks[level][at[1]]) * (1 << level)
    return np.where(is_training, common, 0)


def copied_run(runs: np.ndarray) -> float | None:
    """The longest run of words that stands in a training text too, as a share of a text's words; None without words.

    Args:
        runs: (words,) of one text, from `run_lengths`.
    """
    return float(runs.max() / len(runs)) if len(runs) else None


def copied_ngrams(runs: np.ndarray, n: int = 4) -> float | None:
    """The share of a text's word n-grams that stand in a training text too; None where it has fewer than n words.

    Args:
        runs: (words,) of one text, from `run_lengths`.
    """
    return float(np.mean(runs[: len(runs) - n + 1] >= n)) if len(runs) >= n else None
