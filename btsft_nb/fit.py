"""Examples that are longer than allowed: which tokens go, and what stays trained."""

import numpy as np

from .blur import Kind, thoughts
from .render import Example

TOO_LONG = ("drop", "shorten", "keep_first", "keep_last")


def fit(example: Example, max_length: int, too_long: str) -> tuple[Example | None, str]:
    """An example of at most `max_length` tokens, and what was done to it.

    Args:
        too_long: `drop`; `shorten`: cuts the tails of its thoughts, the longest first, and keeps tags and answers; the
            tag that closes a cut thought is not trained, since the thought did not end there; `keep_first` or
            `keep_last` tokens, whatever they are.

    Returns:
        The example, None where it cannot be made to fit; and what was done, "" where it fits as it is.
    """
    excess = len(example.input_ids) - max_length
    if excess <= 0:
        return example, ""
    kinds, weights = np.asarray(example.kinds), np.asarray(example.weights)
    keep, untrained = np.ones(len(kinds), bool), []
    if too_long == "keep_first":
        keep[max_length:] = False
    elif too_long == "keep_last":
        keep[:excess] = False
    elif too_long == "shorten":
        for thought in sorted(thoughts(kinds), key=len, reverse=True):
            cut = thought[max(len(thought) - excess, 1) :]
            keep[cut] = False
            excess -= len(cut)
            if len(cut):
                untrained.append(cut[-1] + 1)
    if keep.sum() > max_length:
        return None, f"longer than max_length={max_length}"
    weights[[at for at in untrained if at < len(kinds) and kinds[at] == Kind.TAG]] = 0
    weights = weights[keep]
    weights[0] = 0  # nothing predicts the first token
    at = np.concatenate([[0], keep.cumsum()])
    tags = [tag | {"start": int(at[tag["start"]]), "stop": int(at[tag["stop"]])} for tag in example.tags]
    tags = [tag for tag in tags if tag["start"] < tag["stop"]]
    ids = np.asarray(example.input_ids)[keep].tolist()
    what = {"shorten": "thought shortened"}.get(too_long, f"{too_long.replace('_', ' ')} {max_length} tokens")
    return Example(example.id, ids, weights.tolist(), kinds[keep].tolist(), example.flags, tags), what
