"""Examples that are longer than allowed: which tokens go, and what stays trained."""

from itertools import takewhile

import numpy as np

from .formats import to_prompt
from .kinds import Kind, thoughts
from .messages import RowError
from .render import Example, Renderer

TOO_LONG = ("drop", "shorten", "shorten_prompt", "keep_first", "keep_last")


class PromptFrame:
    """What a template writes around the text of every prompt: its first tokens, and how many end it.

    Raises ValueError for a renderer of rows that are formatted already, which may have any.
    """

    def __init__(self, renderer: Renderer):
        if renderer.response_marker:
            raise ValueError(
                "shorten_prompt with response_marker: no template says what to keep; take keep_last"
            )
        one, other = (renderer.prompt_ids(to_prompt(text)) for text in ("0", "a"))
        self.head, self.tail = one[: _shared(one, other)], _shared(one[::-1], other[::-1])

    def cut(self, ids: list[int], prompt: int, excess: int) -> slice | None:
        """Which tokens of a prompt that is the first `prompt` of `ids` go: the first of its text. None: all would."""
        start = _shared(ids, self.head)
        return slice(start, start + excess) if start + excess < prompt - self.tail else None

    def shorten(self, ids: list[int], max_length: int) -> list[int]:
        """A prompt of at most `max_length` tokens. Raises RowError where that leaves nothing of its text."""
        if len(ids) <= max_length:
            return ids
        cut = self.cut(ids, len(ids), len(ids) - max_length)
        if cut is None:
            raise RowError(
                f"max_prompt_length={max_length} leaves nothing of the prompt but its template: take more"
            )
        return ids[: cut.start] + ids[cut.stop :]


def _shared(one: list[int], other: list[int]) -> int:
    """How many tokens both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def fit(
    example: Example, max_length: int, too_long: str, frame: PromptFrame | None = None
) -> tuple[Example | None, str]:
    """An example of at most `max_length` tokens, and what was done to it.

    Args:
        too_long: `drop`; `shorten`: cuts the tails of its thoughts, the longest first, and keeps tags and answers; the
            tag that closes a cut thought is not trained, since the thought did not end there; `shorten_prompt`: cuts
            the first tokens of the first prompt's text, and keeps what the template writes around it, which is
            `frame`; `keep_first` or `keep_last` tokens, whatever they are.

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
    elif too_long == "shorten_prompt":
        prompt = int((kinds != Kind.PROMPT).argmax())
        if cut := frame.cut(example.input_ids, prompt, excess):
            keep[cut] = False
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
    tags = [
        tag | {"start": int(at[tag["start"]]), "stop": int(at[tag["stop"]])} for tag in example.tags
    ]
    tags = [tag for tag in tags if tag["start"] < tag["stop"]]
    ids = np.asarray(example.input_ids)[keep].tolist()
    what = {"shorten": "thought shortened", "shorten_prompt": "prompt shortened"}
    what = what.get(too_long, f"{too_long.replace('_', ' ')} {max_length} tokens")
    return Example(
        example.id, ids, weights.tolist(), kinds[keep].tolist(), example.flags, tags
    ), what
