"""Examples that are longer than allowed: which tokens go, and what stays trained."""

from itertools import takewhile
from typing import NamedTuple

import numpy as np

from .errors import RowError
from .formats import to_prompt
from .kinds import Kind, thoughts
from .render import Example, Renderer


class PromptFrame:
    """What a template writes around the text of every prompt: its first tokens, and how many end it.

    Raises:
        ValueError: the renderer is for formatted text, whose prompts may look like anything.
    """

    def __init__(self, renderer: Renderer):
        if renderer.response_marker:
            raise ValueError(
                "shorten_prompt with response_marker: no template says what to keep; take keep_last"
            )
        # what two prompts have in common that share no text
        one = renderer.prompt_ids(to_prompt("0"))
        other = renderer.prompt_ids(to_prompt("a"))
        self.head = one[: _n_shared(one, other)]
        self.tail = _n_shared(one[::-1], other[::-1])

    def cut(self, ids: list[int], prompt: int, excess: int) -> slice | None:
        """Which of the first `prompt` tokens to delete: the start of their text. None if nothing would remain."""
        start = _n_shared(ids, self.head)
        stop = start + excess
        return slice(start, stop) if stop < prompt - self.tail else None

    def shorten(self, ids: list[int], max_length: int) -> list[int]:
        """A prompt of at most `max_length` tokens. Raises RowError where that leaves nothing of its text."""
        if len(ids) <= max_length:
            return ids
        cut = self.cut(ids, len(ids), len(ids) - max_length)
        if cut is None:
            raise RowError(f"max_prompt_length={max_length} leaves nothing of the prompt's text")
        return ids[: cut.start] + ids[cut.stop :]


def _n_shared(one: list[int], other: list[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _shorten(example: Example, excess: int, _) -> list[int]:
    """The tails of the thoughts, the longest first; one token of each stays."""
    tails = []
    for thought in sorted(thoughts(np.asarray(example.kinds)), key=len, reverse=True):
        room = excess - len(tails)  # what is still too much
        tails += thought[max(len(thought) - room, 1) :].tolist()
    return tails


def _shorten_prompt(example: Example, excess: int, frame: PromptFrame) -> slice:
    is_completion = np.asarray(example.kinds) != Kind.PROMPT
    return frame.cut(example.input_ids, int(is_completion.argmax()), excess) or slice(0)


# What `too_long` can be -> (example, excess, frame) -> the tokens to delete, and what the report calls that.
POLICIES = {
    "drop": (lambda *_: slice(0), ""),
    "shorten": (_shorten, "thought shortened"),
    "shorten_prompt": (_shorten_prompt, "prompt shortened"),
    "keep_first": (lambda example, excess, _: slice(-excess, None), "end cut off"),
    "keep_last": (lambda example, excess, _: slice(excess), "start cut off"),
}


class Fitted(NamedTuple):
    """An example, or None if it cannot be made to fit; and what was done to it, "" if nothing."""

    example: Example | None
    change: str


def fit(
    example: Example, max_length: int, too_long: str, frame: PromptFrame | None = None
) -> Fitted:
    """An example of at most `max_length` tokens.

    Args:
        too_long: `drop`; `shorten`: cuts the tails of its thoughts, the longest first, and keeps tags and answers; the
            tag that closes a cut thought is not trained, since the thought did not end there; `shorten_prompt`: cuts
            the first tokens of the first prompt's text, and keeps what the template writes around it, which is
            `frame`; `keep_first` or `keep_last` tokens, whatever they are.
    """
    excess = len(example.input_ids) - max_length
    # most fit as they are
    if excess <= 0:
        return Fitted(example, "")
    deleted, change = POLICIES[too_long]
    keep = np.ones(len(example.input_ids), bool)
    keep[deleted(example, excess, frame)] = False
    # also where a policy found nothing to delete
    if keep.sum() > max_length:
        return Fitted(None, f"longer than max_length={max_length}")
    kinds = np.asarray(example.kinds)
    weights = np.asarray(example.weights)
    # a tag right after a token that is gone does not close the thought where it ended
    after_cut = np.append(False, ~keep[:-1])
    weights[after_cut & (kinds == Kind.TAG)] = 0
    weights = weights[keep]
    weights[0] = 0  # nothing predicts the first token
    # tags move to where their tokens are now
    index = np.append(0, keep.cumsum())
    tags = []
    for tag in example.tags:
        start, stop = index[[tag["start"], tag["stop"]]].tolist()
        if start < stop:
            tags.append({"tag": tag["tag"], "start": start, "stop": stop})
    ids = np.asarray(example.input_ids)[keep].tolist()
    kinds = kinds[keep].tolist()
    short = Example(example.id, ids, weights.tolist(), kinds, example.flags, tags)
    return Fitted(short, change)
