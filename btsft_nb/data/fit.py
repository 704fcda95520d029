"""Examples and prompts that are longer than allowed: which tokens go, and what stays trained."""

from itertools import takewhile
from operator import eq

import numpy as np

from .errors import RowError
from .formats import to_prompt
from .kinds import Kind, thoughts
from .render import Example

# What `too_long` can be -> what the report says of an example that was made to fit.
POLICIES = {"drop": "", "shorten": "thought shortened", "shorten_prompt": "prompt shortened"}


class PromptFrame:
    """What a template writes around the text of every prompt: its first tokens, and how many end it.

    Raises:
        ValueError: the renderer is for formatted text, whose prompts may look like anything.
    """

    def __init__(self, renderer):
        if renderer.response_marker:
            raise ValueError("shorten_prompt with response_marker: no template says what to keep")
        # what two prompts have in common that share no text
        one = renderer.prompt_ids(to_prompt("0"))
        other = renderer.prompt_ids(to_prompt("a"))
        self.head = one[: _n_shared(one, other)]
        self.tail = _n_shared(one[::-1], other[::-1])

    def cut(self, prompt, excess) -> slice:
        """Which of a prompt's ids to delete: the first of its text, of which one token stays."""
        start = _n_shared(prompt, self.head)
        room = len(prompt) - start - self.tail - 1
        return slice(start, start + max(min(excess, room), 0))

    def shorten(self, prompt, max_length) -> list[int]:
        """A prompt of at most `max_length` tokens. Raises RowError where that leaves nothing of its text."""
        short = list(prompt)
        del short[self.cut(prompt, len(prompt) - max_length)]
        if len(short) > max_length:
            raise RowError(f"max_prompt_length={max_length} leaves nothing of the prompt's text")
        return short


def _n_shared(one, other):
    """How many tokens both begin with."""
    return len(list(takewhile(bool, map(eq, one, other))))


def fit(example, max_length, too_long, frame=None) -> tuple[Example | None, str]:
    """An example of at most `max_length` tokens and what was done to it, "" if nothing; or None, and why.

    Args:
        too_long: `drop`; `shorten`: cuts the tails of its thoughts, the longest first, and keeps tags and answers; the
            tag that closes a cut thought is not trained, since the thought did not end there; `shorten_prompt`: cuts
            the first tokens of the first prompt's text, and keeps what the template writes around it, its `frame`.
    """
    excess = len(example.input_ids) - max_length
    # most fit as they are
    if excess <= 0:
        return example, ""
    kinds = np.asarray(example.kinds)
    keep = np.ones(len(kinds), bool)
    if too_long == "shorten":
        for thought in sorted(thoughts(kinds), key=len, reverse=True):
            # one token of each stays
            n_cut = min(len(thought) - 1, excess)
            keep[thought[len(thought) - n_cut :]] = False
            excess -= n_cut
    elif too_long == "shorten_prompt":
        length = (kinds != Kind.PROMPT).argmax()
        keep[frame.cut(example.input_ids[:length], excess)] = False
    if keep.sum() > max_length:
        return None, f"longer than max_length={max_length}"
    weights = np.asarray(example.weights)
    # a tag right after a token that is gone does not close the thought where it ended
    after_cut = np.append(False, ~keep[:-1])
    weights[after_cut & (kinds == Kind.TAG)] = 0
    # tags move to where their tokens are now
    index = np.append(0, keep.cumsum())
    tags = []
    for tag in example.tags:
        start, stop = index[[tag["start"], tag["stop"]]].tolist()
        if start < stop:
            tags.append(tag | {"start": start, "stop": stop})
    ids = np.asarray(example.input_ids)[keep].tolist()
    weights = weights[keep].tolist()
    short = Example(example.id, ids, weights, kinds[keep].tolist(), example.flags, tags)
    return short, POLICIES[too_long]
