"""What a model's log-probabilities say of kinds of tokens, and of tagged blocks."""

import math
from collections.abc import Sequence

import pandas as pd

from ..data.kinds import Kind
from ..views.inspector_data import check_match
from .intervals import sums_interval


def nll_by_kind(
    examples: Sequence[dict],
    scores: Sequence[dict],
    blurred: Sequence[Sequence[bool]] | None = None,
) -> dict[str, dict]:
    """Perplexity of the supervised tokens (weight other than 0) of each kind, unweighted.

    It is exp of the mean negative log-likelihood per token, special tokens included.

    Args:
        examples: as `prepare` returns them.
        scores: as `score` returns them, in the same order.
        blurred: (T,) bool for each example; then thoughts are also told apart by it.

    Returns:
        `tag`, `think`, `answer`, and with `blurred` also `think, blurred` and `think, not blurred`, where there are
        such tokens: each `{"perplexity", "tokens"}`, the first `{"value", "low", "high", "n"}` over the n examples that
        have such tokens.

    Raises:
        ValueError: examples, scores and `blurred` do not match.

    >>> example = {"input_ids": [5, 6], "kinds": [bt.Kind.THINK] * 2, "weights": [1.0, 1.0]}
    >>> nll_by_kind([example], [{"log_probs": [-math.log(2)] * 2}])
    {'think': {'perplexity': {'value': 2.0, 'low': 2.0, 'high': 2.0, 'n': 1}, 'tokens': 2}}
    """
    check_match("scores", [score["log_probs"] for score in scores], examples)
    if blurred is not None:
        check_match("blurred", blurred, examples)
    tables = []
    for i, (example, score) in enumerate(zip(examples, scores, strict=True)):
        table = pd.DataFrame({"kind": example["kinds"], "weight": example["weights"]})
        table["nats"] = -pd.Series(score["log_probs"], dtype=float)
        table["is blurred"] = False if blurred is None else blurred[i]
        tables.append(table.assign(example=i, tokens=1))
    tokens = pd.concat(tables)
    by_kind = tokens[tokens["weight"] != 0].groupby("kind")
    groups = {Kind(kind).name.lower(): group for kind, group in by_kind}
    if blurred is not None and "think" in groups:
        for is_blurred, group in groups["think"].groupby("is blurred"):
            groups["think, blurred" if is_blurred else "think, not blurred"] = group
    return {
        name: {"perplexity": _ratio(group, "tokens", math.exp), "tokens": len(group)}
        for name, group in groups.items()
    }


def _ratio(table, unit, scale=float):
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
            log_probs = score["log_probs"][max(block["start"], 1) : block["stop"]]
            blocks.append([block["tag"], i, float(sum(log_probs)), 1, len(log_probs)])
    table = pd.DataFrame(blocks, columns=["tag", "example", "nats", "blocks", "tokens"])
    return {
        tag: {
            "per_block": _ratio(group, "blocks"),
            "per_token": _ratio(group, "tokens"),
            "blocks": len(group),
            "tokens": int(group["tokens"].sum()),
        }
        for tag, group in table[table["tokens"] > 0].groupby("tag")
    }
