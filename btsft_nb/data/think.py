"""The think format in text, defined once: `<think>`, a thought, `</think>`, an answer.

`objective.format_reward` has the same format for token ids.
"""

import re
from dataclasses import dataclass

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
    """A text cut at its first open tag, and at the first close tag after it. Any other tag is plain text.

    Attributes:
        before: what stands before the open tag.
        open_tag: `<think>`, or nothing where there is none.
        thought: what the tags hold. A lone close tag ends a thought that began with the text.
        close_tag: `</think>`, or nothing.
        answer: what follows the close tag; all of a text without tags, and nothing of a thought that does not end.
        extra_opens: how many open tags there are beyond the one that counts.
        extra_closes: how many close tags there are beyond the one that counts.
    """

    before: str
    open_tag: str
    thought: str
    close_tag: str
    answer: str
    extra_opens: int
    extra_closes: int


def split(text: str) -> ThinkParts:
    """Cuts a text into what stands before its thought, the thought, and the answer.

    >>> parts = split("<think>3 + 4</think>7")
    >>> parts.before, parts.thought, parts.answer
    ('', '3 + 4', '7')
    """
    # `partition` leaves all of a text in its first part where the tag is missing.
    before, open_tag, rest = text.partition(OPEN)
    if not open_tag:
        before = ""
        rest = text
    thought, close_tag, answer = rest.partition(CLOSE)
    # Text without any tag is an answer.
    if not open_tag and not close_tag:
        thought = ""
        answer = text
    extra_opens = text.count(OPEN) - bool(open_tag)
    extra_closes = text.count(CLOSE) - bool(close_tag)
    return ThinkParts(before, open_tag, thought, close_tag, answer, extra_opens, extra_closes)


def tagged(thought) -> str:
    """A thought as a reasoning model writes it: tags on lines of their own, up to where the answer begins."""
    return f"{OPEN}\n{thought.strip()}\n{CLOSE}\n\n"


def has_tags(text) -> bool:
    """Whether the text holds a think tag."""
    return OPEN in text or CLOSE in text


def retagged(text) -> tuple[list[str], str] | None:
    """A text with think tags in place of the markers that it begins with, and what was changed.

    The text comes in one piece for each of its old characters, so that each piece can stay in the block of its
    character. None where there is nothing to change, since the text has think tags, or begins with no marker.
    """
    # A marker further on is text about markers.
    match = _OPENING.match(text)
    if match is None or has_tags(text):
        return None
    pieces = list(text)

    def put(tag, start, stop):
        pieces[start:stop] = [tag] + [""] * (stop - start - 1)

    put(OPEN, *match.span(1))
    # A thought that does not end keeps its open tag, as one in think tags does.
    closing = re.compile(re.escape(MARKERS[match[1]])).search(text, match.end())
    if closing:
        put(CLOSE, *closing.span())
        for solution in _SOLUTION.finditer(text, closing.end()):
            put("", *solution.span())
    return pieces, f"{match[1]} -> {OPEN}"
