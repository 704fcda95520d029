"""How much the thoughts of one prompt differ from each other, and how much of them is copied from training thoughts.

Words are runs of letters and digits; every other character that is no white space is a word of its own.
"""

import re
from collections.abc import Sequence


def words(text: str) -> list[str]:
    """The words of a text.

    >>> words("3+4 = 7.")
    ['3', '+', '4', '=', '7', '.']
    """
    return re.findall(r"\w+|[^\w\s]", text)


def _ngrams(text, n):
    """A list of tuples of n words."""
    split = words(text)
    return [tuple(split[i : i + n]) for i in range(len(split) - n + 1)]


def distinct_n(texts: Sequence[str], n: int = 2) -> float | None:
    """Distinct word n-grams over all word n-grams of the texts; None where there are none.

    Li et al. 2016, https://arxiv.org/abs/1510.03055, section 5.

    >>> distinct_n(["a b a b", "b c"])
    0.75
    """
    grams = [gram for text in texts for gram in _ngrams(text, n)]
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
    scores = []
    for i, text in enumerate(split):
        others = [other for other in split[:i] + split[i + 1 :] if other]
        if text and others:
            score = metric.sentence_score(text, others).score / 100
            scores.append(min(score, 1.0))  # sacrebleu's rounding can exceed it
        else:
            scores.append(None)
    return scores


def copied_ngrams(texts: Sequence[str], training: Sequence[str], n: int = 4) -> list[float | None]:
    """The share of each text's word n-grams that stand in a training text too; None where it has fewer than n words.

    Raises:
        ValueError: there is no training text.

    >>> copied_ngrams(["one two three", "one"], ["say one two"], n=2)
    [0.5, None]
    """
    if not training:
        raise ValueError("training must hold at least one text, got none")
    known = {gram for text in training for gram in _ngrams(text, n)}
    shares = []
    for text in texts:
        copied = [gram in known for gram in _ngrams(text, n)]
        shares.append(sum(copied) / len(copied) if copied else None)
    return shares
