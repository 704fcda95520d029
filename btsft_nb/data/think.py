"""The think format in text, defined once: `<think>`, a thought, `</think>`, an answer.

`objective.format_reward` has the same format for token ids.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

OPEN = "<think>"
CLOSE = "</think>"
# As they stand in messages, whatever a tokenizer's own are
THINK_TAGS = (OPEN, CLOSE)
# How other families of models write the tags: what opens a thought -> what closes it.
MARKERS = {
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<reasoning>": "</reasoning>",
    "[THINK]": "[/THINK]",
    "<thinking>": "</thinking>",
}
_OPENING = re.compile(rf"\s*({'|'.join(map(re.escape, MARKERS))})")
# What one family writes around the answer, with the white space inside of it.
_SOLUTION = re.compile(r"<\|begin_of_solution\|>\s*|((?<!\s)\s+)?<\|end_of_solution\|>(\s*\Z)?")


@dataclass(frozen=True)
class ThinkParts:
    """A text cut at its first open tag, and at the first close tag after it.

    Any other tag is plain text of the part in which it stands. `opened`: a prompt before the text holds the open tag,
    so that the thought begins with the text.
    """

    text: str
    opened: bool = False

    @cached_property
    def open_at(self) -> int | None:
        """Where the first open tag begins; None where there is none."""
        at = self.text.find(OPEN)
        return None if at < 0 else at

    @cached_property
    def close_at(self) -> int | None:
        """Where the close tag begins: the first after the open tag, or the first of all where nothing opens."""
        at = self.text.find(CLOSE, self.open_at or 0)
        return None if at < 0 else at

    @property
    def before(self) -> str:
        """What stands before the thought's open tag."""
        return self.text[: self.open_at] if self.open_at is not None else ""

    @property
    def thought(self) -> str:
        """What the tags hold. A lone close tag ends a thought that began with the text; without tags it is empty."""
        is_inside = self.opened or self.open_at is not None or self.close_at is not None
        if not is_inside:
            return ""
        # A thought that the prompt opened begins with the text.
        start = 0 if self.open_at is None else self.open_at + len(OPEN)
        return self.text[start : self.close_at]

    @property
    def answer(self) -> str:
        """What follows the close tag; all of a text without tags, and nothing of a thought that does not end."""
        if self.close_at is not None:
            return self.text[self.close_at + len(CLOSE) :]
        return "" if self.opened or self.open_at is not None else self.text

    @property
    def extra_opens(self) -> int:
        """How many open tags there are beyond the one that counts."""
        # The prompt's own open tag is the one that counts.
        allowed = 0 if self.opened else 1
        return max(self.text.count(OPEN) - allowed, 0)

    @property
    def extra_closes(self) -> int:
        """How many close tags there are beyond the one that counts."""
        return max(self.text.count(CLOSE) - (self.close_at is not None), 0)


def split(text: str, *, opened: bool = False) -> ThinkParts:
    """Cuts a text into what stands before its thought, the thought, and the answer.

    >>> parts = split("<think>3 + 4</think>7")
    >>> parts.before, parts.thought, parts.answer
    ('', '3 + 4', '7')
    """
    return ThinkParts(text, opened)


def tagged(thought: str) -> str:
    """A thought as a reasoning model writes it: tags on lines of their own, up to where the answer begins."""
    return f"{OPEN}\n{thought.strip()}\n{CLOSE}\n\n"


def has_tags(text: str) -> bool:
    """Whether the text holds a think tag."""
    return OPEN in text or CLOSE in text


class Edit(NamedTuple):
    """Characters `start` to `stop` of a text, and what replaces them."""

    start: int
    stop: int
    text: str


def marker_edits(text: str) -> list[Edit]:
    """What makes think tags of the markers that a text begins with.

    The edits come in the order of the text. There are none where it has think tags already.
    """
    match = _OPENING.match(text)
    if match is None or has_tags(text):
        return []
    edits = [Edit(match.start(1), match.end(1), OPEN)]
    # A thought that does not end keeps its open tag, as one in think tags does.
    closing = MARKERS[match[1]]
    stop = text.find(closing, match.end(1))
    if stop >= 0:
        end = stop + len(closing)
        edits.append(Edit(stop, end, CLOSE))
        edits += [Edit(*solution.span(), "") for solution in _SOLUTION.finditer(text, end)]
    return edits
