"""What tokens weigh beside what a row itself says: by kind, pattern, function or the importance of sentences."""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import pairwise
from numbers import Integral

import numpy as np

from .kinds import Kind
from .messages import A_WEIGHT, Block, Message, RowError, is_weight, shown

_KINDS = {kind.name.lower(): kind for kind in Kind if kind != Kind.PROMPT}
# (row, text of an assistant turn) -> (start, stop, weight) or (start, stop, weight, tag) in characters of the text
Spans = Callable[[dict, str], Iterable[tuple]]


class Weighting:
    """What `prepare(weights=...)` was given: `factors`, (4,) by `Kind`, and spans of text for `apply`.

    Args:
        weights: a dictionary from `tag`, `think` or `answer` to a factor on the weight of such tokens, or from a
            compiled regular expression to the weight of the text that it matches in an assistant turn; or a function
            that gives the spans of a turn, see `Spans`. Where spans overlap the later one counts. A span without a
            tag leaves the tags of the text as they are.

    Raises ValueError for anything else.
    """

    def __init__(self, weights: dict | Spans | None):
        self.factors = [1.0] * len(Kind)
        self._spans: Spans | None = weights if callable(weights) else None
        self._patterns: list[tuple[re.Pattern, float]] = []
        by_key = {} if weights is None or callable(weights) else weights
        if not isinstance(by_key, dict):
            raise ValueError(
                f"weights={weights!r:.80}: a dictionary or a function wanted; see help(Weighting)"
            )
        for key, weight in by_key.items():
            is_pattern = isinstance(key, re.Pattern) and isinstance(key.pattern, str)
            if not (is_pattern or key in _KINDS) or not is_weight(weight):
                wanted = f"{', '.join(_KINDS)} or re.compile(a pattern), and {A_WEIGHT}"
                raise ValueError(f"weights: {wanted} wanted, got {key!r:.80}: {weight!r:.40}")
            if is_pattern:
                self._patterns.append((key, float(weight)))
            else:
                self.factors[_KINDS[key]] = float(weight)

    def apply(self, messages: list[Message], row: dict) -> list[Message]:
        """The same messages, those of the assistant cut into blocks at the spans. Raises RowError for a wrong span."""
        return [
            _cut(m, self._found(row, m.text)) if m.role in ("assistant", "text") else m
            for m in messages
        ]

    def _found(self, row: dict, text: str) -> list[tuple[int, int, float, str | None]]:
        if self._spans is None:
            return [
                (*found.span(), weight, None)
                for p, weight in self._patterns
                for found in p.finditer(text)
            ]
        spans = self._spans(row, text)
        if not isinstance(spans, Iterable):
            raise RowError(f"the function for weights gave no spans but {shown(spans)}")
        return [_checked(span, text) for span in spans]


def _checked(span: object, text: str) -> tuple[int, int, float, str | None]:
    fits = isinstance(span, (tuple, list)) and len(span) in (3, 4)
    start, stop, weight, tag = (*span, None)[:4] if fits else (None,) * 4
    fits = fits and all(
        isinstance(at, Integral) and not isinstance(at, bool) for at in (start, stop)
    )
    if not (
        fits
        and 0 <= start <= stop <= len(text)
        and is_weight(weight)
        and isinstance(tag, str | None)
    ):
        wanted = f"(start, stop, weight) or (start, stop, weight, tag), the weight {A_WEIGHT} and the tag text, wanted"
        raise RowError(
            f"weights: {wanted} in a turn of {len(text):,} characters, got {shown(span)}"
        )
    return int(start), int(stop), float(weight), tag


def _cut(message: Message, spans: list[tuple[int, int, float, str | None]]) -> Message:
    """The message in blocks that end where a span does; uncovered text keeps its weight."""
    lengths = [len(block.text) for block in message.blocks]
    if not sum(lengths) or not spans:
        return message
    block_of = np.repeat(np.arange(len(lengths)), lengths)
    span_of = np.full(len(block_of), -1)
    for i, (start, stop, _, _) in enumerate(spans):
        span_of[start:stop] = i
    edges = np.flatnonzero(np.diff(block_of) | np.diff(span_of)) + 1
    text, blocks = message.text, []
    for start, stop in pairwise([0, *edges.tolist(), len(text)]):
        block, span = message.blocks[block_of[start]], span_of[start]
        _, _, weight, tag = spans[span] if span >= 0 else (0, 0, block.weight, None)
        blocks.append(Block(text[start:stop], weight, block.tag if tag is None else tag))
    return replace(message, blocks=blocks)


def sentence_weights(
    field: str = "chunks",
    text: str = "chunk",
    weight: str | Callable[[dict], float] = "importance",
    tag: str | None = None,
) -> Spans:
    """For rows that hold the pieces of the assistant's turn, in order, with a number each: the piece's tokens weigh it.

    White space is no part of the comparison, since sets of sentences normalise it; what follows a piece belongs to it.

    Args:
        field: the row's list of pieces. text: a piece's field with its text.
        weight: a piece's field with its weight, or a function from piece to weight.
        tag: a piece's field with the name to follow it by (of a list, the first), if any.

    Raises (when used) RowError for a malformed piece, or one that does not come next in the turn, by row and field.
    """

    def spans(row: dict, turn: str) -> list[tuple]:
        pieces = row.get(field)
        if not isinstance(pieces, list):
            raise RowError(f"a list of pieces wanted, got {type(pieces).__name__}", field=field)
        solid, squeezed = [i for i, c in enumerate(turn) if not c.isspace()], "".join(turn.split())
        found, at = [], 0
        for i, piece in enumerate(pieces):
            if not isinstance(piece, dict) or not isinstance(piece.get(text), str):
                raise RowError(
                    f"a piece with its text in {text!r} wanted, got {shown(piece)}",
                    field=f"{field}[{i}]",
                )
            words = "".join(piece[text].split())
            start = squeezed.find(words, at)
            if start < 0:
                raise RowError(
                    f"{shown(piece[text])} does not follow in the assistant's turn",
                    field=f"{field}[{i}]",
                )
            number = weight(piece) if callable(weight) else piece.get(weight)
            name = piece.get(tag) if tag else None
            name = next(iter(name), None) if isinstance(name, list) else name
            if not is_weight(number) or not isinstance(name, str | None):
                got = f"{shown(number)} and {shown(name)}"
                raise RowError(
                    f"{A_WEIGHT} as weight, text as tag wanted, got {got}", field=f"{field}[{i}]"
                )
            at = start + len(words)
            if words:
                found.append(
                    (solid[start], solid[at] if at < len(solid) else len(turn), number, name)
                )
        return found

    return spans
