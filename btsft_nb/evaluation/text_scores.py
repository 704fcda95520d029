"""Texts against reference texts: BLEU, ROUGE and BERTScore by their own libraries, with intervals over prompts.

`texts` holds for each prompt a text or several samples, `references` one text for each prompt. The libraries are
imported when they are needed.
"""

from collections.abc import Sequence

import pandas as pd

from .intervals import interval, sums_interval


def bleu(texts: Sequence[str | Sequence[str]], references: Sequence[str]) -> dict:
    """Corpus BLEU, 0 to 100, by sacrebleu with its defaults (tokenizer 13a, exponential smoothing).

    Papineni et al. 2002, https://aclanthology.org/P02-1040; Post 2018, https://arxiv.org/abs/1804.08771. The interval
    resamples prompts and computes the corpus statistic anew.

    Returns:
        `{"value", "low", "high", "n"}`.

    Raises:
        ValueError: texts and references do not match.

    >>> round(bleu(["the cat is on the mat"], ["the cat is on the mat"])["value"])
    100
    """
    from sacrebleu.metrics import BLEU

    metric = BLEU()
    sums = []
    for _, pairs in _pairs(texts, references).groupby("prompt"):
        score = metric.corpus_score(pairs["text"].tolist(), [pairs["reference"].tolist()])
        sums.append([score.sys_len, score.ref_len, *score.counts, *score.totals])

    def corpus(total):
        lengths = total[:2].astype(int).tolist()
        counts, totals = total[2:].reshape(2, -1).tolist()
        return metric.compute_bleu(counts, totals, *lengths, metric.smooth_method).score

    return sums_interval(sums, corpus)


def rouge(texts: Sequence[str | Sequence[str]], references: Sequence[str]) -> dict[str, dict]:
    """ROUGE-1, ROUGE-2 and ROUGE-L, F-measures 0 to 1, by rouge-score without a stemmer; means over prompts.

    Lin 2004, https://aclanthology.org/W04-1013. rouge-score's words are runs of a-z and 0-9: a text in another script
    has none, and scores 0.

    Returns:
        `rouge1`, `rouge2` and `rougeL`, each `{"value", "low", "high", "n"}`.

    Raises:
        ValueError: texts and references do not match.

    >>> rouge(["a b c d"], ["b a c d"])["rougeL"]["value"]
    0.75
    """
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    pairs = _pairs(texts, references)
    scores = pd.DataFrame([scorer.score(pair.reference, pair.text) for pair in pairs.itertuples()])
    return _means(pairs, scores.map(lambda score: score.fmeasure))


def bert_score(
    texts: Sequence[str | Sequence[str]], references: Sequence[str], model: str, num_layers: int
) -> dict[str, dict]:
    """BERTScore without baseline and idf weights, by bert-score (the extra `bertscore`); means over prompts.

    Zhang et al. 2020, https://arxiv.org/abs/1904.09675.

    Args:
        model: a Hub id or a folder of an encoder and its tokenizer, such as "roberta-large".
        num_layers: the layer whose states are compared, such as 17 for roberta-large; bert-score's table
            `bert_score.utils.model2layers` has the layer that its authors found best for each model.

    Returns:
        `precision`, `recall` and `f1`, each `{"value", "low", "high", "n"}`.

    Raises:
        ValueError: texts and references do not match.

    >>> bert_score(["a cat"], ["the cat"], "roberta-large", num_layers=17)  # doctest: +SKIP
    """
    from bert_score import score

    pairs = _pairs(texts, references)
    precision, recall, f1 = score(
        pairs["text"].tolist(),
        pairs["reference"].tolist(),
        model_type=model,
        num_layers=num_layers,
    )
    return _means(pairs, pd.DataFrame({"precision": precision, "recall": recall, "f1": f1}))


def _pairs(texts, references):
    """A row for each text: its prompt, text and reference."""
    samples = [[text] if isinstance(text, str) else list(text) for text in texts]
    if isinstance(texts, str) or not samples or len(samples) != len(references) or [] in samples:
        raise ValueError(f"{len(references)} references need a text or more each, got {samples}")
    rows = []
    for i, texts in enumerate(samples):
        rows += [{"prompt": i, "text": text, "reference": references[i]} for text in texts]
    # as objects: pandas' own strings cannot hold half a character
    return pd.DataFrame(rows, dtype=object)


def _means(pairs, scores):
    """Of each column of scores the mean over prompts, first over a prompt's samples, with its interval."""
    by_prompt = scores.groupby(pairs["prompt"]).mean()
    return {name: interval(by_prompt[name].tolist()) for name in by_prompt}
