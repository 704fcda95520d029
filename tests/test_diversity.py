"""Diversity of thoughts against sacrebleu and by hand; overlap with training texts against a plain search."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU

from btsft_nb.evaluation.diversity import words
from btsft_nb.evaluation.metrics import (
    copied_ngrams,
    distinct_n,
    self_bleu,
)

TEXTS = st.lists(st.lists(st.sampled_from("abc"), max_size=8).map(" ".join), max_size=5)


def test_words():
    """Signs are words of their own, as in sacrebleu's tokenizer."""
    assert words("3+4 = 7.\n\u00e9t\u00e9") == ["3", "+", "4", "=", "7", ".", "\u00e9t\u00e9"]


def test_distinct_n_by_hand():
    """a b, b a, a b and b c: three of four pairs; none where no text has n words."""
    assert distinct_n(["a b a b", "b c"], 2) == 3 / 4
    assert distinct_n(["a b a b", "b c"], 1) == 3 / 6
    assert distinct_n(["a", ""], 2) is None


def sacrebleu_of(texts: list[str]) -> float:
    """The mean sentence BLEU of each text against all others."""
    bleu = BLEU(effective_order=True, tokenize="none")
    scores = [
        bleu.sentence_score(text, texts[:i] + texts[i + 1 :]).score for i, text in enumerate(texts)
    ]
    return np.mean(scores) / 100


@given(TEXTS)
def test_self_bleu_is_that_of_sacrebleu(texts):
    """Its sentence BLEU of each text against all others."""
    texts = [text for text in texts if text]
    wanted = pytest.approx(sacrebleu_of(texts)) if len(texts) > 1 else None
    assert self_bleu(texts) == wanted and self_bleu([*texts, " "]) == wanted


def test_self_bleu_of_long_texts_is_that_of_sacrebleu():
    """Many counts above one, unequal lengths."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefgh"), size)) for size in (20, 60, 60, 90, 200)]
    assert self_bleu(texts) == pytest.approx(sacrebleu_of(texts))
    assert self_bleu(["a b c d e"] * 3) == pytest.approx(1)


@given(TEXTS, TEXTS.filter(len))
def test_copied_ngrams_are_those_of_a_plain_search(texts, training):
    """None reaches from one training text into the next; texts of the same set do not count."""
    for text, share in zip(texts, copied_ngrams(texts, training, 3), strict=True):
        grams = [text.split()[i : i + 3] for i in range(len(text.split()) - 2)]
        known = [any(f" {' '.join(gram)} " in f" {t} " for t in training) for gram in grams]
        assert share == (pytest.approx(np.mean(known)) if grams else None)


def test_copied_ngrams_by_hand():
    """Two of the three pairs of "a b c d" stand in a training text."""
    assert copied_ngrams(["a b c d", "a"], ["x a b", "c d"], 2) == [2 / 3, None]


def test_no_training_text_is_refused():
    with pytest.raises(ValueError, match="training must hold at least one text"):
        copied_ngrams(["a"], [])
