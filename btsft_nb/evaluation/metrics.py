"""What completions and log-probabilities are worth: pure functions of texts and numbers, from the modules beside it."""

from .answers import (
    Parsed,
    boxed,
    extract,
    is_correct,
    last_number,
    majority,
    normalise_latex,
    parse,
    pass_at_k,
)
from .diversity import (
    copied_ngrams,
    copied_run,
    distinct_n,
    run_lengths,
    self_bleu,
    unique_share,
    way_entropy,
)
from .intervals import interval, paired_difference, sums_interval
from .likelihood import choose, log_prob_by_tag, nll_by_kind
from .text_scores import bert_score, bleu, rouge

__all__ = [
    "Parsed", "bert_score", "bleu", "boxed", "choose", "copied_ngrams", "copied_run",
    "distinct_n", "extract", "interval", "is_correct", "last_number", "log_prob_by_tag", "majority", "nll_by_kind",
    "normalise_latex", "paired_difference", "parse", "pass_at_k", "rouge", "run_lengths", "self_bleu",
    "sums_interval", "unique_share", "way_entropy",
]  # fmt: skip
