"""What tokens weigh beside what a row itself says: by kind, pattern, function or the importance of sentences."""

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from numbers import Integral, Real

import numpy as np

from .blur import Kind
from .messages import Block, Message, RowError

LARGEST_WEIGHT = 1e6
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
        if not (weights is None or callable(weights) or isinstance(weights, dict)):
            raise ValueError(f"weights={weights!r:.80}: a dictionary or a function wanted; see help(Weighting)")
        for key, weight in weights.items() if isinstance(weights, dict) else ():
            if not _is_weight(weight):
                raise ValueError(f"weights: {_WANTED} for {key!r}, got {weight!r:.40}")
            if isinstance(key, re.Pattern) and isinstance(key.pattern, str):
                self._patterns.append((key, float(weight)))
            elif isinstance(key, str) and key in _KINDS:
                self.factors[_KINDS[key]] = float(weight)
            else:
                raise ValueError(f"weights: {key!r:.80} is neither of {', '.join(_KINDS)} nor re.compile(a pattern)")

    def apply(self, messages: list[Message], row: dict) -> list[Message]:
        """The same messages, those of the assistant cut into blocks at the spans. Raises RowError for a wrong span."""
        return [_cut(m, self._found(row, m.text)) if m.role in ("assistant", "text") else m for m in messages]

    def _found(self, row: dict, text: str) -> list[tuple[int, int, float, str | None]]:
        if self._spans is None:
            return [(*found.span(), weight, None) for p, weight in self._patterns for found in p.finditer(text)]
        spans = self._spans(row, text)
        if not isinstance(spans, Iterable):
            raise RowError(f"the function for weights gave no spans but {type(spans).__name__}: {_SPAN} wanted")
        return [_checked(span, text) for span in spans]


_WANTED = f"a number within {LARGEST_WEIGHT:g} of 0 wanted"
_SPAN = "(start, stop, weight) or (start, stop, weight, tag)"


def _is_weight(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and bool(abs(value) <= LARGEST_WEIGHT)


def _checked(span: object, text: str) -> tuple[int, int, float, str | None]:
    if not isinstance(span, (tuple, list)) or len(span) not in (3, 4):
        raise RowError(f"weights: {_SPAN} wanted, got {span!r:.80}")
    start, stop, weight, tag = (*span, None)[:4]
    whole = all(isinstance(at, Integral) and not isinstance(at, bool) for at in (start, stop))
    if not whole or not 0 <= start <= stop <= len(text):
        raise RowError(f"weights: the span {span!r:.80} is not within the {len(text):,} characters of the turn")
    if not _is_weight(weight):
        raise RowError(f"weights: the span {span!r:.80} weighs {weight!r:.40}; {_WANTED}")
    if not isinstance(tag, str | None):
        raise RowError(f"weights: the span {span!r:.80} has a tag that is no text")
    return int(start), int(stop), float(weight), tag


def _cut(message: Message, spans: list[tuple[int, int, float, str | None]]) -> Message:
    """The message in blocks that end where a span does; uncovered text keeps its weight."""
    text = message.text
    if not text or not spans:
        return message
    lengths = [len(block.text) for block in message.blocks]
    block_of = np.repeat(np.arange(len(lengths)), lengths)
    span_of = np.full(len(block_of), -1)
    for i, (start, stop, _, _) in enumerate(spans):
        span_of[start:stop] = i
    edges = np.flatnonzero(np.diff(block_of) | np.diff(span_of)) + 1
    starts, blocks = [0, *edges.tolist()], []
    for start, stop in zip(starts, [*starts[1:], len(text)], strict=True):
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
            where = f"{field}[{i}]"
            if not isinstance(piece, dict) or not isinstance(piece.get(text), str):
                raise RowError(f"a piece with its text in {text!r} wanted, got {_said(piece)}", field=where)
            words = "".join(piece[text].split())
            start = squeezed.find(words, at)
            if start < 0:
                raise RowError(f"does not follow in the assistant's turn: {piece[text]!r:.80}", field=where)
            at = start + len(words)
            number = weight(piece) if callable(weight) else piece.get(weight)
            if not _is_weight(number):
                name = "the function for weights" if callable(weight) else weight
                raise RowError(f"{_WANTED} from {name}, got {_said(number)}", field=where)
            if words:
                stop = solid[at] if at < len(solid) else len(turn)
                found.append((solid[start], stop, number, _name(piece, tag, where)))
        return found

    return spans


def _name(piece: dict, tag: str | None, where: str) -> str | None:
    value = piece.get(tag) if tag else None
    value = next(iter(value), None) if isinstance(value, list) else value
    if not isinstance(value, str | None):
        raise RowError(f"text or a list of texts wanted, got {_said(value)}", field=f"{where}.{tag}")
    return value


def _said(value: object) -> str:
    """A value of a row for an error: nested ones, which may be of any size, by their type."""
    return f"{value!r:.40}" if isinstance(value, Real | str | None) else type(value).__name__
