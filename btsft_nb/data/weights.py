"""What tokens weigh beside what a row itself says: by kind, pattern, function or the importance of sentences."""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from operator import index
from typing import NamedTuple

import numpy as np

from ..checks import check_number
from .errors import unexpected
from .kinds import Kind
from .messages import Block, Message, as_text, as_weight

# Prompts are never trained, so they have no weight.
_KINDS = {kind.name.lower(): kind for kind in Kind if kind != Kind.PROMPT}


class Span(NamedTuple):
    """Characters `start` to `stop` of a text, what they weigh, and a name to follow them by."""

    start: int
    stop: int
    weight: float
    tag: str | None = None


# What a user writes: (row, text of an assistant turn) -> spans of the text, as tuples.
Spans = Callable[[dict, str], Iterable[tuple]]


class Weighting:
    """What `prepare(weights=...)` stands for.

    Args:
        weights: a dictionary from `tag`, `think` or `answer` to a factor on the weight of such tokens, or from a
            compiled regular expression to the weight of the text that it matches; or a function (row, text of an
            assistant turn) -> (start, stop, weight) or (start, stop, weight, tag) in characters. Where spans overlap
            the later one counts. A span without a tag keeps the tags of its text.

    Attributes:
        factors: (4,) by `Kind`.

    Raises ValueError for anything else.
    """

    def __init__(self, weights: dict | Spans | None):
        self.factors = [1.0] * len(Kind)
        self._patterns = {}
        self._function = weights if callable(weights) else None
        # A function is asked row by row.
        if weights is None or callable(weights):
            return
        if not isinstance(weights, dict):
            raise ValueError(f"weights must be a dictionary or a function, got {weights!r:.80}")
        # Kinds are factors on what the row says; patterns replace it.
        for key, weight in weights.items():
            is_pattern = isinstance(key, re.Pattern) and isinstance(key.pattern, str)
            if not is_pattern and key not in _KINDS:
                raise ValueError(f"weights: {key!r} is no compiled pattern, think, answer or tag")
            check_number(f"weights[{key!r}]", weight, -1e6, 1e6)
            if is_pattern:
                self._patterns[key] = float(weight)
            else:
                self.factors[_KINDS[key]] = float(weight)

    def apply(self, messages: list[Message], row: dict) -> list[Message]:
        """The same messages, those of the assistant cut into blocks at the spans. Raises RowError for a wrong span."""
        return [
            _cut(turn, self._spans(row, turn.text)) if turn.role in ("assistant", "text") else turn
            for turn in messages
        ]

    def _spans(self, row: dict, text: str) -> list[Span]:
        # In the order of the keys: of overlapping matches the later one counts.
        if self._function is None:
            return [
                Span(*match.span(), weight)
                for pattern, weight in self._patterns.items()
                for match in pattern.finditer(text)
            ]
        # What a user's function returns is not to be trusted.
        spans = self._function(row, text)
        if not isinstance(spans, Iterable):
            raise unexpected(spans, "spans from the function for weights")
        return [_checked(span, len(text)) for span in spans]


def _checked(values: tuple, length: int) -> Span:
    """A span that a user's function made, in a text of this length."""
    try:
        span = Span(*values)
        # A user's numbers may be NumPy's, which JSON cannot write.
        start = index(span.start)
        stop = index(span.stop)
    except TypeError:
        raise unexpected(values, "(start, stop, weight) or (..., tag)", "weights") from None
    if not 0 <= start <= stop <= length:
        raise unexpected(values, f"a span within {length:,} characters", "weights")
    # A wrong weight or tag is refused here, not where the tokens are weighed.
    if span.tag is not None:
        as_text(span.tag, "weights")
    return Span(start, stop, as_weight(span.weight, "weights"), span.tag)


def _cut(message: Message, spans: list[Span]) -> Message:
    """The message in blocks that end where a span does; uncovered text keeps its weight."""
    # Most turns of most sets have no span.
    text = message.text
    if not text or not spans:
        return message
    # Number the block and the span that each character is in, -1 for no span.
    lengths = [len(block.text) for block in message.blocks]
    block_of = np.repeat(np.arange(len(lengths)), lengths)
    span_of = np.full(len(text), -1)
    for number, span in enumerate(spans):
        span_of[span.start : span.stop] = number

    # A new block begins wherever one of the two changes.
    edges = np.flatnonzero(np.diff(block_of) | np.diff(span_of)) + 1
    blocks = []
    for start, stop in pairwise([0, *edges.tolist(), len(text)]):
        block = replace(message.blocks[block_of[start]], text=text[start:stop])
        if span_of[start] >= 0:
            span = spans[span_of[start]]
            block.weight = span.weight
            block.tag = block.tag if span.tag is None else span.tag
        blocks.append(block)
    return replace(message, blocks=blocks)


def sentence_weights(
    field: str = "chunks",
    text: str = "chunk",
    weight: str | Callable[[dict], float] = "importance",
    tag: str | None = None,
) -> Spans:
    """Weights for rows that hold the pieces of the assistant's turn, in order, with a number each.

    White space is not compared, since sets of sentences normalise it. What follows a piece belongs to it.

    Args:
        field: the row's list of pieces.
        text: a piece's field with its text.
        weight: a piece's field with its weight, or a function from piece to weight.
        tag: a piece's field with the name to follow it by (of a list, the first), if any.

    Returns:
        A function for `prepare(weights=...)`. It raises RowError for a malformed piece, or one that does not follow.

    >>> row = {"chunks": [{"chunk": "3 + 4", "importance": 0.5}, {"chunk": "= 7.", "importance": 2}]}
    >>> [tuple(span) for span in bt.sentence_weights()(row, "3 + 4 = 7.")]
    [(0, 6, 0.5, None), (6, 10, 2.0, None)]
    """

    def spans(row: dict, turn: str) -> list[Span]:
        pieces = row.get(field)
        if not isinstance(pieces, list):
            raise unexpected(pieces, "a list of pieces", field)
        # The turn without white space, and where each of its characters stands.
        squeezed = "".join(turn.split())
        places = [i for i, char in enumerate(turn) if not char.isspace()]
        places.append(len(turn))

        spans = []
        end = 0
        for i, piece in enumerate(pieces):
            block = _block(piece, f"{field}[{i}]", text, weight, tag)
            # A sentence that is repeated is found behind the one before it.
            words = "".join(block.text.split())
            start = squeezed.find(words, end)
            if start < 0:
                raise unexpected(block.text, "a piece of the assistant's turn", f"{field}[{i}]")
            end = start + len(words)
            # A piece of white space alone has no place of its own.
            if words:
                spans.append(Span(places[start], places[end], block.weight, block.tag))
        return spans

    return spans


def _block(
    piece: object, field: str, text: str, weight: str | Callable[[dict], float], tag: str | None
) -> Block:
    """A piece of a turn, read from the fields that `sentence_weights` names."""
    if not isinstance(piece, dict):
        raise unexpected(piece, f"a piece with {text!r}", field)
    number = weight(piece) if callable(weight) else piece.get(weight)
    name = piece.get(tag)
    # A sentence may have several names.
    if isinstance(name, list):
        name = name[0] if name else None
    if name is not None:
        as_text(name, f"{field}.{tag}")
    return Block(as_text(piece.get(text), f"{field}.{text}"), as_weight(number, field), name)
