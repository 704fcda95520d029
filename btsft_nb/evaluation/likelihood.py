"""What a model's log-probabilities say of kinds of tokens, of tagged blocks, and of the options of a question."""

import math
from collections.abc import Sequence
from itertools import groupby

import numpy as np
from transformers import PreTrainedTokenizerBase

from ..data.kinds import Kind
from ..data.tokens import token_texts
from ..views.inspector_data import check_match
from .intervals import sums_interval


def token_bytes(tokenizer: PreTrainedTokenizerBase, input_ids: Sequence[int]) -> np.ndarray:
    """(T,) UTF-8 bytes of each token's text; tokens that share a character have equal parts of its bytes.

    Special tokens, as the end of turn, are no text and have none.
    """
    ids = [int(token) for token in input_ids]
    texts = token_texts(tokenizer, ids)
    n_bytes = np.array([len(text.encode()) for text in texts], dtype=float)
    options = {"clean_up_tokenization_spaces": False}
    for broken, run in groupby(range(len(ids)), lambda i: "\ufffd" in texts[i]):
        if broken:  # parts of characters, which only make text together; behind a token, as in `token_texts`
            run = list(run)
            lead, start, stop = max(run[0] - 1, 0), run[0], run[-1] + 1
            whole, before = (
                tokenizer.decode(ids[lead:end], **options).encode() for end in (stop, start)
            )
            n_bytes[run] = (len(whole) - len(before)) / len(run)
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    n_bytes[[token in special for token in ids]] = 0
    return n_bytes


def nll_by_kind(
    examples: Sequence[dict],
    scores: Sequence[dict],
    tokenizer: PreTrainedTokenizerBase,
    blurred: Sequence[np.ndarray] | None = None,
) -> dict[str, dict]:
    """Perplexity and bits per byte of the supervised tokens (weight other than 0) of each kind, unweighted.

    Perplexity is exp of the mean negative log-likelihood per token, special tokens included. Bits per byte, which
    models with other tokenizers can be compared by, is that of the tokens that are text, over their UTF-8 bytes: Gao
    et al. 2020, https://arxiv.org/abs/2101.00027, section 3.1; special tokens left out as in nanochat's
    `evaluate_bpb`, https://github.com/karpathy/nanochat/blob/master/nanochat/loss_eval.py.

    Args:
        examples: as `prepare` returns them. scores: as `score` returns them, in the same order.
        blurred: (T,) bool for each example; then thoughts are also told apart by it.

    Returns:
        `tag`, `think`, `answer`, and with `blurred` also `think, blurred` and `think, not blurred`, where there are
        such tokens: each `{"perplexity", "bits_per_byte", "tokens", "bytes"}`, the first two
        `{"value", "low", "high", "n"}` over the n examples that have such tokens; `bits_per_byte` is None where all
        are special.

    Raises ValueError where examples, scores and `blurred` do not match.
    """
    check_match("scores", [score["log_probs"] for score in scores], examples)
    if blurred is not None:
        check_match("blurred", blurred, examples)
    rows: dict[str, list] = {}
    for i, (example, score) in enumerate(zip(examples, scores, strict=True)):
        kinds, n_bytes = np.asarray(example["kinds"]), token_bytes(tokenizer, example["input_ids"])
        nll = -np.asarray(score["log_probs"], dtype=float)
        masks = {kind.name.lower(): kinds == kind for kind in (Kind.TAG, Kind.THINK, Kind.ANSWER)}
        if blurred is not None:
            masks["think, blurred"] = masks["think"] & np.asarray(blurred[i], dtype=bool)
            masks["think, not blurred"] = masks["think"] & ~np.asarray(blurred[i], dtype=bool)
        for name, mask in masks.items():
            mask = mask & (np.asarray(example["weights"]) != 0)
            text = mask & (n_bytes > 0)
            rows.setdefault(name, []).append(
                [nll[mask].sum(), mask.sum(), nll[text].sum(), n_bytes[text].sum()]
            )
    return {name: _rates(np.array(sums)) for name, sums in rows.items() if np.sum(sums, axis=0)[1]}


def _rates(sums: np.ndarray) -> dict:
    """(examples, 4): nats and tokens, then nats and bytes of those that are text."""
    some, text = sums[sums[:, 1] > 0], sums[sums[:, 3] > 0]
    return {
        "perplexity": sums_interval(some[:, :2], lambda s: math.exp(s[0] / s[1])),
        "bits_per_byte": sums_interval(text[:, 2:], lambda s: s[0] / s[1] / math.log(2))
        if len(text)
        else None,
        "tokens": int(sums[:, 1].sum()),
        "bytes": round(sums[:, 3].sum()),
    }


def log_prob_by_tag(examples: Sequence[dict], scores: Sequence[dict]) -> dict[str, dict]:
    """Log-probability in nats of the tagged blocks, by tag.

    Args:
        examples: as `prepare` returns them, their `tags` dicts of `tag`, `start` and `stop` (in tokens).
        scores: as `score` returns them, in the same order.

    Returns:
        tag -> `{"per_block", "per_token", "blocks", "tokens"}`, the first two `{"value", "low", "high", "n"}` over the
        n examples that have such blocks: the sum over a block's tokens, averaged over blocks, and the mean over
        tokens. The first token of an example, which nothing predicts, is not counted.

    Raises ValueError where examples and scores do not match.
    """
    check_match("scores", [score["log_probs"] for score in scores], examples)
    rows: dict[str, dict[int, np.ndarray]] = {}
    for i, (example, score) in enumerate(zip(examples, scores, strict=True)):
        for block in example["tags"]:
            log_probs = np.asarray(score["log_probs"], dtype=float)[
                max(block["start"], 1) : block["stop"]
            ]
            if len(log_probs):
                sums = rows.setdefault(block["tag"], {}).setdefault(i, np.zeros(3))
                sums += log_probs.sum(), 1, len(log_probs)
    found = {}
    for tag, by_example in rows.items():
        sums = np.array(list(by_example.values()))
        found[tag] = {
            "per_block": sums_interval(sums, lambda s: s[0] / s[1]),
            "per_token": sums_interval(sums, lambda s: s[0] / s[2]),
            "blocks": int(sums[:, 1].sum()),
            "tokens": int(sums[:, 2].sum()),
        }
    return found


def choose(log_probs: Sequence[float], n_bytes: Sequence[int]) -> dict[str, int]:
    """Which option of a multiple-choice question a model finds most likely; of equally likely ones the first.

    Args:
        log_probs: of each option's text after the question, in nats, summed over its tokens.
        n_bytes: the length of each option's text in UTF-8 bytes.

    Returns:
        `{"raw": index, "normalised": index}`: by the log-probability, `acc` of lm-evaluation-harness, and by the
        log-probability per byte, its `acc_bytes` (`acc_norm` divides by characters, which are as many in ASCII):
        https://blog.eleuther.ai/multiple-choice-normalization.

    Raises ValueError where the lists do not match, or a value is none that text can have.
    """
    fit = (
        len(log_probs) == len(n_bytes) > 0
        and all(value <= 0 for value in log_probs)
        and all(n > 0 for n in n_bytes)
    )
    if not fit:
        wanted = "a log-probability of at most 0 and a length above 0 for each option wanted"
        raise ValueError(f"log_probs={list(log_probs)}, n_bytes={list(n_bytes)}: {wanted}")
    raw = np.asarray(log_probs, dtype=float)
    return {"raw": int(raw.argmax()), "normalised": int((raw / np.asarray(n_bytes)).argmax())}
