"""The kinds of tokens, and which thought tokens are blurred: one uniform draw for each, compared with a threshold.

The draws of an example come from a counter-based generator keyed by (seed, epoch, example), never from global state.
So they do not depend on batch size, order, workers, rank or resume, and they nest: what is blurred at threshold 0.2
is blurred at 0.5.
"""

import hashlib
from enum import IntEnum

import numpy as np


class Kind(IntEnum):
    """What a token is to the objective. Everything but PROMPT is what the model has to generate."""

    PROMPT = 0
    TAG = 1
    THINK = 2
    ANSWER = 3  # the end of turn belongs to it


def example_key(example_id: str) -> int:
    """A non-negative 63-bit number for an example's id, the same in every process."""
    return int.from_bytes(hashlib.blake2b(example_id.encode(), digest_size=8).digest(), "little") >> 1


def draws(kinds: np.ndarray, key: int, seed: int, epoch: int, keep_first: int = 0) -> np.ndarray:
    """The draw of each token: uniform on [0, 1) for thought tokens, infinity for all that is never blurred.

    Args:
        kinds: (T,) the `Kind` of each token.
        key: `example_key` of the example.
        seed, epoch: which draw; pass epoch 0 throughout to draw once for all epochs.
        keep_first: how many thought tokens at the start are never blurred (the reference implementation keeps 5).

    Returns:
        (T,) float64. A token is blurred iff its draw is below the threshold.
    """
    u = np.full(len(kinds), np.inf)
    thought = np.flatnonzero(np.asarray(kinds) == Kind.THINK)
    generator = np.random.Generator(np.random.Philox(key=[(seed << 32) + epoch, key]))
    u[thought] = generator.random(len(thought))
    u[thought[:keep_first]] = np.inf
    return u
