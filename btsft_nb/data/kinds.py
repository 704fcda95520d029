"""The kinds of tokens, and the colour that stands for each in every view."""

from enum import IntEnum

import numpy as np


class Kind(IntEnum):
    """What a token is to the objective. Everything but PROMPT is what the model has to generate.

    >>> example = bt.prepare(bt.load_rows("tiny/teacher")[:1], bt.load_tokenizer("tiny"))[0]  # doctest: +ELLIPSIS
    tiny/teacher: 1 rows...
    >>> [bt.Kind(kind).name for kind in sorted(set(example["kinds"]))]
    ['PROMPT', 'TAG', 'THINK', 'ANSWER']
    """

    PROMPT = 0
    TAG = 1
    THINK = 2
    ANSWER = 3  # the end of turn belongs to it


def thoughts(kinds: np.ndarray) -> list[np.ndarray]:
    """The positions of each run of thought tokens."""
    at = np.flatnonzero(kinds == Kind.THINK)
    return np.split(at, np.flatnonzero(np.diff(at) > 1) + 1) if len(at) else []


# One palette for Python, JavaScript and static HTML: Okabe and Ito's, which every eye tells apart, and gray.
KIND_COLORS = {
    Kind.PROMPT: "#999999",
    Kind.TAG: "#e69f00",
    Kind.THINK: "#56b4e9",
    Kind.ANSWER: "#009e73",
}
