"""The kinds of tokens, and which thought tokens are blurred: one uniform draw for each, compared with a threshold.

Tokens of one word, sentence or thought can share a draw.

The draws of an example come from a counter-based generator keyed by (seed, epoch, example), never from global state.
So they do not depend on batch size, order, workers, rank or resume, and they nest: what is blurred at threshold 0.2
is blurred at 0.5.
"""

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from ..data.kinds import Kind, thoughts

UNITS = ("token", "word", "sentence", "thought")
_UNIT_END = {
    "word": re.compile(r"(?<=\S)(?=\s)"),
    "sentence": re.compile(r"[.!?…][\"'”’)\]]*(?=\s)|[。！？]|(?<=\S)(?=\s*\n)"),
    "thought": re.compile(r"(?!)"),
}


def example_key(example_id: str) -> int:
    """A non-negative 63-bit number for an example's id, the same in every process."""
    return (
        int.from_bytes(hashlib.blake2b(example_id.encode(), digest_size=8).digest(), "little") >> 1
    )


def unit_ids(kinds: np.ndarray, texts: Sequence[str], unit: str) -> np.ndarray:
    """Which unit of a thought each of its tokens belongs to: those that share a number share one draw.

    Words end where white space begins; sentences at one of . ! ? and white space, at an ideographic full stop, or at a
    line break. No unit reaches from one thought into the next. A token that straddles two units belongs to the later.

    Args:
        kinds: (T,) the `Kind` of each token. texts: the text of each token on its own.
        unit: one of UNITS.

    Returns:
        (T,) int64, counting up from 0 over the thoughts; -1 for tokens of other kinds.
    """
    kinds, units, used = np.asarray(kinds), np.full(len(kinds), -1, np.int64), 0
    for thought in thoughts(kinds):
        pieces = [texts[i] for i in thought]
        if unit == "token":
            inside = np.arange(len(thought))
        else:
            ends = [found.end() for found in _UNIT_END[unit].finditer("".join(pieces))]
            last = np.cumsum([len(piece) for piece in pieces]) - 1
            inside = np.unique(np.searchsorted(ends, last, side="right"), return_inverse=True)[1]
        units[thought] = used + inside
        used = units[thought[-1]] + 1
    return units


def draws(
    kinds: np.ndarray,
    key: int,
    seed: int,
    epoch: int,
    keep_first: int = 0,
    units: np.ndarray | None = None,
) -> np.ndarray:
    """The draw of each token: uniform on [0, 1) for thought tokens, infinity for all that is never blurred.

    Args:
        kinds: (T,) the `Kind` of each token.
        key: `example_key` of the example.
        seed, epoch: which draw; pass epoch 0 throughout to draw once for all epochs.
        keep_first: how many tokens at the start of a thought are never blurred (the reference implementation keeps 5).
        units: (T,) `unit_ids`, whose tokens share a draw; by default each token has its own.

    Returns:
        (T,) float64. A token is blurred iff its draw is below the threshold.
    """
    kinds = np.asarray(kinds)
    u = np.full(len(kinds), np.inf)
    thought = np.flatnonzero(kinds == Kind.THINK)
    unit = np.arange(len(thought)) if units is None else units[thought]
    keys = np.array(
        [(seed << 32) + epoch, key], np.uint64
    )  # a list would become floats from seed 2**31 on
    generator = np.random.Generator(np.random.Philox(key=keys))
    u[thought] = generator.random(unit.max(initial=-1) + 1)[unit]
    for tokens in thoughts(kinds):
        u[tokens[:keep_first]] = np.inf
    return u
