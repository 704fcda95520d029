"""Texts against reference texts: BLEU, ROUGE and BERTScore by their own libraries, with intervals over prompts.

`texts` holds for each prompt a text or several samples, `references` one text for each prompt. The libraries are
imported when they are needed.
"""

from collections.abc import Sequence

import numpy as np

from .intervals import interval, sums_interval


def bleu(texts: Sequence[str | Sequence[str]], references: Sequence[str]) -> dict:
    """Corpus BLEU, 0 to 100, by sacrebleu with its defaults (tokenizer 13a, exponential smoothing).

    Papineni et al. 2002, https://aclanthology.org/P02-1040; Post 2018, https://arxiv.org/abs/1804.08771. The interval
    resamples prompts and computes the corpus statistic anew.

    Returns:
        `{"value", "low", "high", "n"}`.

    Raises ValueError where texts and references do not match.
    """
    from sacrebleu.metrics import BLEU

    metric, sums = BLEU(), []
    for samples, reference in _pairs(texts, references):
        found = metric.corpus_score(samples, [[reference] * len(samples)])
        sums.append([found.sys_len, found.ref_len, *found.counts, *found.totals])

    def corpus(total: np.ndarray) -> float:
        lengths, counts, totals = np.split(total, [2, 2 + metric.max_ngram_order])
        smoothing = {"smooth_method": metric.smooth_method, "smooth_value": metric.smooth_value}
        return BLEU.compute_bleu(
            counts.tolist(), totals.tolist(), *lengths.astype(int).tolist(), **smoothing
        ).score

    return sums_interval(sums, corpus)


def rouge(texts: Sequence[str | Sequence[str]], references: Sequence[str]) -> dict[str, dict]:
    """ROUGE-1, ROUGE-2 and ROUGE-L, F-measures 0 to 1, by rouge-score without a stemmer; means over prompts.

    Lin 2004, https://aclanthology.org/W04-1013. rouge-score's words are runs of a-z and 0-9: a text in another script
    has none, and scores 0.

    Returns:
        `rouge1`, `rouge2` and `rougeL`, each `{"value", "low", "high", "n"}`.

    Raises ValueError where texts and references do not match.
    """
    from rouge_score.rouge_scorer import RougeScorer

    names = ("rouge1", "rouge2", "rougeL")
    scorer, values = RougeScorer(names), {name: [] for name in names}
    for samples, reference in _pairs(texts, references):
        found = [scorer.score(reference, text) for text in samples]
        for name in names:
            values[name].append(np.mean([score[name].fmeasure for score in found]))
    return {name: interval(found) for name, found in values.items()}


def bert_score(
    texts: Sequence[str | Sequence[str]], references: Sequence[str], model: str, num_layers: int
) -> dict[str, dict]:
    """BERTScore without baseline and idf weights, by bert-score; means over prompts.

    Zhang et al. 2020, https://arxiv.org/abs/1904.09675.

    Args:
        model: a Hub id or a folder of an encoder and its tokenizer, such as "roberta-large".
        num_layers: the layer whose states are compared, such as 17 for roberta-large; bert-score's table
            `bert_score.utils.model2layers` has the layer that its authors found best for each model.

    Returns:
        `precision`, `recall` and `f1`, each `{"value", "low", "high", "n"}`.

    Raises ImportError where bert-score is not installed, ValueError where texts and references do not match.
    """
    try:
        from bert_score import score
    except ImportError as error:
        raise ImportError(
            "bert_score needs bert-score: pip install 'btsft_nb[bertscore]'"
        ) from error
    pairs = _pairs(texts, references)
    flat = [(text, reference) for samples, reference in pairs for text in samples]
    found = score(*map(list, zip(*flat, strict=True)), model_type=model, num_layers=num_layers)
    ends = np.cumsum([len(samples) for samples, _ in pairs])[:-1]
    return {
        name: interval([float(part.mean()) for part in np.split(values.numpy(), ends)])
        for name, values in zip(("precision", "recall", "f1"), found, strict=True)
    }


def _pairs(
    texts: Sequence[str | Sequence[str]], references: Sequence[str]
) -> list[tuple[list[str], str]]:
    """The samples and the reference of each prompt."""
    if (
        isinstance(texts, str)
        or isinstance(references, str)
        or len(texts) != len(references)
        or not len(texts)
    ):
        raise ValueError(
            f"{len(texts)} texts and {len(references)} references: a list of one or more of each wanted"
        )
    pairs = [
        ([text] if isinstance(text, str) else list(text), ref)
        for text, ref in zip(texts, references, strict=True)
    ]
    empty = next((i for i, (samples, _) in enumerate(pairs) if not samples), None)
    if empty is not None:
        raise ValueError(f"texts[{empty}] has no samples: one or more wanted for each prompt")
    return pairs
