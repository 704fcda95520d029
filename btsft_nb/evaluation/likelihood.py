"""What a model's log-probabilities say of kinds of tokens, of tagged blocks, and of the options of a question."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from transformers import PreTrainedTokenizerBase

from ..data.kinds import Kind
from ..views.inspector_data import check_match
from .intervals import sums_interval


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
    `evaluate_bpb`, https://github.com/karpathy/nanochat/blob/master/nanochat/loss_eval.py. A character with tokens in
    two of the groups counts in both.

    Args:
        examples: as `prepare` returns them.
        scores: as `score` returns them, in the same order.
        blurred: (T,) bool for each example; then thoughts are also told apart by it.

    Returns:
        `tag`, `think`, `answer`, and with `blurred` also `think, blurred` and `think, not blurred`, where there are
        such tokens: each `{"perplexity", "bits_per_byte", "tokens", "bytes"}`, the first two
        `{"value", "low", "high", "n"}` over the n examples that have such tokens; `bits_per_byte` is None where all
        are special.

    Raises:
        ValueError: examples, scores and `blurred` do not match.

    >>> tokenizer = bt.load_tokenizer("tiny")
    >>> ids = tokenizer.encode("3 + 4 = 7")
    >>> example = {"input_ids": ids, "kinds": [bt.Kind.THINK] * len(ids), "weights": [1.0] * len(ids)}
    >>> nll = nll_by_kind([example], [{"log_probs": [-math.log(2)] * len(ids)}], tokenizer)
    >>> nll["think"]["perplexity"], nll["think"]["bytes"]
    ({'value': 2.0, 'low': 2.0, 'high': 2.0, 'n': 1}, 9)
    """
    check_match("scores", [score["log_probs"] for score in scores], examples)
    if blurred is not None:
        check_match("blurred", blurred, examples)
    special = [i for i, token in tokenizer.added_tokens_decoder.items() if token.special]
    tokens = _supervised_tokens(examples, scores, blurred)
    groups = {Kind(kind).name.lower(): group for kind, group in tokens.groupby("kind")}
    if blurred is not None and "think" in groups:
        by_blur = groups["think"].groupby("is blurred")
        names = {True: "think, blurred", False: "think, not blurred"}
        groups |= {names[is_blurred]: group for is_blurred, group in by_blur}

    def bytes_of(ids: pd.Series) -> int:
        return len(tokenizer.decode(ids.tolist(), clean_up_tokenization_spaces=False).encode())

    rates = {}
    for name, group in groups.items():
        text = group[~group["id"].isin(special)].groupby("example")
        sums = pd.DataFrame({"nats": text["nats"].sum(), "bytes": text["id"].agg(bytes_of)})
        bits = None
        if len(sums):
            bits = _ratio(sums, "bytes", lambda nats: nats / math.log(2))
        rates[name] = {
            "perplexity": _ratio(group, "tokens", math.exp),
            "bits_per_byte": bits,
            "tokens": len(group),
            "bytes": int(sums["bytes"].sum()),
        }
    return rates


def _supervised_tokens(
    examples: Sequence[dict], scores: Sequence[dict], blurred: Sequence[np.ndarray] | None
) -> pd.DataFrame:
    """A row for each supervised token: example, id, kind, nats, is blurred, and 1 in tokens."""
    tables = []
    for i, (example, score) in enumerate(zip(examples, scores, strict=True)):
        table = pd.DataFrame({"kind": example["kinds"], "id": example["input_ids"], "example": i})
        table["nats"] = -np.asarray(score["log_probs"], dtype=float)
        table["is blurred"] = False if blurred is None else np.asarray(blurred[i], dtype=bool)
        is_supervised = np.asarray(example["weights"]) != 0
        tables.append(table[is_supervised & (table["kind"] != Kind.PROMPT)])
    return pd.concat(tables).assign(tokens=1)


def _ratio(table: pd.DataFrame, unit: str, scale: Callable[[float], float] = float) -> dict:
    """Nats per unit, scaled, with its interval over examples."""
    sums = table.groupby("example")[["nats", unit]].sum()
    return sums_interval(sums, lambda total: scale(total[0] / total[1]))


def log_prob_by_tag(examples: Sequence[dict], scores: Sequence[dict]) -> dict[str, dict]:
    """Log-probability in nats of the tagged blocks, by tag.

    Args:
        examples: as `prepare` returns them, their `tags` dicts of `tag`, `start` and `stop` (in tokens).
        scores: as `score` returns them, in the same order.

    Returns:
        tag -> `{"per_block", "per_token", "blocks", "tokens"}`, the first two `{"value", "low", "high", "n"}` over the
        n examples that have such blocks: the sum over a block's tokens, averaged over blocks, and the mean over
        tokens. The first token of an example, which nothing predicts, is not counted.

    Raises:
        ValueError: examples and scores do not match.

    >>> example = {"input_ids": [1, 2, 3], "tags": [{"tag": "doubt", "start": 1, "stop": 3}]}
    >>> log_prob_by_tag([example], [{"log_probs": [0.0, -1.0, -3.0]}])["doubt"]["per_token"]["value"]
    -2.0
    """
    check_match("scores", [score["log_probs"] for score in scores], examples)
    blocks = []
    for i, (example, score) in enumerate(zip(examples, scores, strict=True)):
        for block in example["tags"]:
            log_probs = np.asarray(score["log_probs"])[max(block["start"], 1) : block["stop"]]
            if len(log_probs):
                sums = {"nats": float(log_probs.sum()), "blocks": 1, "tokens": len(log_probs)}
                blocks.append({"tag": block["tag"], "example": i} | sums)
    return {
        tag: {
            "per_block": _ratio(group, "blocks"),
            "per_token": _ratio(group, "tokens"),
            "blocks": len(group),
            "tokens": int(group["tokens"].sum()),
        }
        for tag, group in (pd.DataFrame(blocks).groupby("tag") if blocks else ())
    }


def choose(log_probs: Sequence[float], n_bytes: Sequence[int]) -> dict[str, int]:
    """Which option of a multiple-choice question a model finds most likely; of equally likely ones the first.

    Args:
        log_probs: of each option's text after the question, in nats, summed over its tokens.
        n_bytes: the length of each option's text in UTF-8 bytes.

    Returns:
        `{"raw": index, "normalised": index}`: by the log-probability, `acc` of lm-evaluation-harness, and by the
        log-probability per byte, its `acc_bytes` (`acc_norm` divides by characters, which are as many in ASCII):
        https://blog.eleuther.ai/multiple-choice-normalization.

    Raises:
        ValueError: the lists do not match, or a value is none that text can have.

    >>> choose(log_probs=[-3, -4], n_bytes=[3, 8])
    {'raw': 0, 'normalised': 1}
    """
    raw = np.asarray(log_probs, dtype=float)
    lengths = np.asarray(n_bytes)
    if not (len(raw) == len(lengths) > 0 and (raw <= 0).all() and (lengths > 0).all()):
        raise ValueError(
            "each option needs a log-probability of at most 0 and a length above 0, "
            f"got log_probs={list(log_probs)}, n_bytes={list(n_bytes)}"
        )
    return {"raw": int(raw.argmax()), "normalised": int((raw / lengths).argmax())}
