"""What completions and log-probabilities are worth: pure functions of texts and numbers, as `bt.metrics`."""

# ruff: noqa: F401
from .answers import Parsed, boxed, extract, is_correct, majority, parse
from .diversity import copied_ngrams, distinct_n, self_bleu
from .intervals import interval, paired_difference, sums_interval
from .likelihood import log_prob_by_tag, nll_by_kind
from .text_scores import bert_score, bleu, rouge
