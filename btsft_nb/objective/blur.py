"""Which thought tokens are blurred: each has a uniform draw, and is blurred where that is below the threshold.

The draws of an example come from a counter-based generator keyed by (seed, epoch, example), never from global state.
So they do not depend on batch size, order, workers, rank or resume, and they nest: what is blurred at threshold 0.2
is blurred at 0.5. Tokens of one word, sentence or thought can share a draw.
"""

import hashlib
import re

import numpy as np

from ..data.kinds import Kind, thoughts

UNITS = ("token", "word", "sentence", "thought")

# where a unit ends within the text of a thought
_UNIT_END = {
    "word": r"(?<=\S)(?=\s)",
    "sentence": r"[.!?…][\"'”’)\]]*(?=\s)|[。！？]|(?<=\S)(?=\s*\n)",
    "thought": r"(?!)",  # nowhere
}


def example_key(example_id: str) -> int:
    """A non-negative 63-bit number for an example's id, the same in every process.

    >>> bt.example_key("tiny/teacher/0")
    1408102677987290960
    """
    digest = hashlib.blake2b(example_id.encode(), digest_size=8).digest()
    # one bit less than the digest has, so that an int64 tensor holds it
    return int.from_bytes(digest, "little") >> 1


def unit_ids(kinds, texts, unit):
    """Numbers the units of an example's thoughts: tokens with the same number share one draw.

    Words end where white space begins; sentences at one of . ! ? and white space, at an ideographic full stop, or at a
    line break. No unit reaches from one thought into the next. A token that straddles two units belongs to the later.

    Args:
        kinds: (T,) the `Kind` of each token.
        texts: the text of each token on its own.
        unit: one of UNITS.

    Returns:
        (T,) int64, counting up from 0 over the thoughts; -1 for tokens of other kinds.

    >>> unit_ids([1, 2, 2, 2, 1, 3], ["<think>", "I", " am", " here", "</think>", "!"], "word").tolist()
    [-1, 0, 1, 2, -1, -1]
    """
    kinds = np.asarray(kinds)
    is_thought = kinds == Kind.THINK
    units = np.where(is_thought, np.cumsum(is_thought) - 1, -1)
    if unit == "token":
        return units
    first_free = 0
    for thought in thoughts(kinds):
        inside = [texts[i] for i in thought]
        ends = [match.end() for match in re.finditer(_UNIT_END[unit], "".join(inside))]
        # a token belongs to the unit of its last character: how many units end at or before it
        last_character = np.cumsum([len(text) for text in inside]) - 1
        numbers = np.searchsorted(ends, last_character, side="right")
        # a unit within one token has no last character of a token, and leaves a gap
        _, without_gaps = np.unique(numbers, return_inverse=True)
        units[thought] = first_free + without_gaps
        first_free = units[thought[-1]] + 1
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
        seed: of the run.
        epoch: which draw; pass 0 throughout to draw once for all epochs.
        keep_first: how many tokens at the start of a thought are never blurred (the reference implementation keeps 5).
        units: (T,) `unit_ids`, whose tokens share a draw; by default each token has its own.

    Returns:
        (T,) float64. A token is blurred iff its draw is below the threshold.

    >>> kinds = [bt.Kind.TAG, bt.Kind.THINK, bt.Kind.THINK, bt.Kind.TAG, bt.Kind.ANSWER]
    >>> bt.draws(kinds, bt.example_key("tiny/teacher/0"), seed=0, epoch=0).round(3)
    array([  inf, 0.436, 0.448,   inf,   inf])
    """
    kinds = np.asarray(kinds)
    thought = np.flatnonzero(kinds == Kind.THINK)
    unit = np.arange(len(thought)) if units is None else units[thought]
    # an array, since numpy reads a list with numbers from 2**63 on as floats, which round
    generator_key = np.array([(seed << 32) + epoch, key], np.uint64)
    generator = np.random.Generator(np.random.Philox(key=generator_key))
    u = np.full(len(kinds), np.inf)
    # one draw a unit, in the order of the units: prompt and padding move none
    u[thought] = generator.random(unit.max(initial=-1) + 1)[unit]
    for tokens in thoughts(kinds):
        u[tokens[:keep_first]] = np.inf
    return u
