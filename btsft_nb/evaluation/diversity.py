"""How much the thoughts of one prompt differ from each other, and how much of them is copied from training thoughts.

Words are runs of letters and digits; every other character that is no white space is a word of its own.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

_WORD = re.compile(r"\w+|[^\w\s]")


def words(text: str) -> list[str]:
    """The words of a text.

    >>> words("3+4 = 7.")
    ['3', '+', '4', '=', '7', '.']
    """
    return _WORD.findall(text)


def ngrams(text: str, n: int) -> list[tuple[str, ...]]:
    """The word n-grams of a text.

    >>> ngrams("a b c", 2)
    [('a', 'b'), ('b', 'c')]
    """
    split = words(text)
    return [tuple(split[i : i + n]) for i in range(len(split) - n + 1)]


def unique_share(texts: Sequence[str]) -> float:
    """Distinct texts over all texts, white space folded: 1/n where all n are the same, 1 where none are.

    >>> unique_share(["one two", "one  two", "three", "four"])
    0.75
    """
    return len({" ".join(text.split()) for text in texts}) / len(texts)


def distinct_n(texts: Sequence[str], n: int = 2) -> float | None:
    """Distinct word n-grams over all word n-grams of the texts; None where there are none.

    Li et al. 2016, https://arxiv.org/abs/1510.03055, section 5.

    >>> distinct_n(["a b a b", "b c"])
    0.75
    """
    grams = [gram for text in texts for gram in ngrams(text, n)]
    return len(set(grams)) / len(grams) if grams else None


def self_bleu(texts: Sequence[str]) -> float | None:
    """The mean of `self_bleus`, 1 where all texts are the same; None where fewer than two have a word.

    >>> self_bleu(["a b c d", "a b c d"]), self_bleu(["a b", "c d"])
    (1.0, 0.0)
    """
    scores = [score for score in self_bleus(texts) if score is not None]
    return sum(scores) / len(scores) if scores else None


def self_bleus(texts: Sequence[str]) -> list[float | None]:
    """The sentence BLEU of each text against all others, 0 to 1; None for one without a word, or if no other has one.

    Zhu et al. 2018 (Texygen), https://arxiv.org/abs/1802.01886; BLEU is sacrebleu's, over `words`.
    """
    from sacrebleu.metrics import BLEU

    metric = BLEU(effective_order=True, tokenize="none")
    split = [" ".join(words(text)) for text in texts]
    scores: list[float | None] = [None] * len(texts)
    for i, text in enumerate(split):
        others = [other for other in split[:i] + split[i + 1 :] if other]
        if text and others:
            score = metric.sentence_score(text, others).score / 100
            scores[i] = min(score, 1.0)  # sacrebleu's rounding can exceed it
    return scores


def way_entropy(ways: Sequence[str | None]) -> float | None:
    """The entropy in bits of the ways of thinking that could be told: 2 for four in equal parts; None where none could.

    The plug-in estimate (Shannon 1948), which from n samples is too low and at most log2(n).

    >>> way_entropy(["count", "count", "split", "split", None])
    1.0
    """
    counts = Counter(way for way in ways if way is not None)
    total = counts.total()
    return math.fsum(c / total * math.log2(total / c) for c in counts.values()) if total else None


def copied_ngrams(texts: Sequence[str], training: Sequence[str], n: int = 4) -> list[float | None]:
    """The share of each text's word n-grams that stand in a training text too; None where it has fewer than n words.

    Raises:
        ValueError: there is no training text.

    >>> copied_ngrams(["one two three", "one"], ["say one two"], n=2)
    [0.5, None]
    """
    if not training:
        raise ValueError("training must hold at least one text, got none")
    known = {gram for text in training for gram in ngrams(text, n)}
    shares: list[float | None] = []
    for text in texts:
        grams = ngrams(text, n)
        copied = sum(gram in known for gram in grams)
        shares.append(copied / len(grams) if grams else None)
    return shares
