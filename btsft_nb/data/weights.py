"""What tokens weigh beside what a row itself says: by kind, or by a function that returns spans of the text."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from operator import index

import numpy as np

from ..checks import check_choice
from .errors import unexpected
from .formats import TRAINED
from .kinds import Kind
from .messages import as_text, as_weight


def kind_factors(weights) -> list[float]:
    """(4,) by `Kind`: the factors in a dictionary from `tag`, `think` or `answer`; 1 of a function or None.

    Raises ValueError for anything else.

    >>> kind_factors({"think": 0.5})
    [1.0, 1.0, 0.5, 1.0]
    """
    factors = [1.0] * len(Kind)
    # A function is asked turn by turn.
    if weights is None or callable(weights):
        return factors
    if not isinstance(weights, dict):
        raise unexpected(weights, "a dictionary or a function", "weights")
    for name, factor in weights.items():
        # Prompts are never trained, so they have no weight.
        check_choice("a key of weights", name, ("tag", "think", "answer"))
        factors[Kind[name.upper()]] = as_weight(factor, f"weights[{name!r}]")
    return factors


def cut_at_spans(message, function, row):
    """A message of the assistant in blocks that end where a span does; any other as it is.

    Args:
        function: (row, text) -> (start, stop, weight) or (start, stop, weight, tag) in characters of the text. Where
            spans overlap the later one counts. Text without a span keeps its weight, and without a tag its tags.

    Raises RowError for a wrong span.
    """
    if message.role not in TRAINED:
        return message
    text = message.text
    spans = function(row, text)
    if not isinstance(spans, Iterable):
        raise unexpected(spans, "spans", "weights")
    spans = [_checked(span, len(text)) for span in spans]
    # Most turns of most sets have none.
    if not (text and spans):
        return message
    # Number the block and the span that each character is in, -1 for no span.
    lengths = [len(block.text) for block in message.blocks]
    block_of = np.repeat(np.arange(len(lengths)), lengths)
    span_of = np.full(len(text), -1)
    for number, (start, stop, _, _) in enumerate(spans):
        span_of[start:stop] = number

    # A new block begins wherever one of the two changes.
    edges = np.flatnonzero(np.diff(block_of) | np.diff(span_of)) + 1
    blocks = []
    for start, stop in pairwise([0, *edges.tolist(), len(text)]):
        block = replace(message.blocks[block_of[start]], text=text[start:stop])
        if span_of[start] >= 0:
            _, _, block.weight, tag = spans[span_of[start]]
            block.tag = block.tag if tag is None else tag
        blocks.append(block)
    return replace(message, blocks=blocks)


def _checked(span, length):
    """A span that a user's function made in a text of this length: start, stop, weight and tag."""
    # The tag may be left out.
    try:
        start, stop, weight, tag = span if len(span) == 4 else (*span, None)
        is_inside = 0 <= index(start) <= index(stop) <= length
    except (TypeError, ValueError):
        is_inside = False
    if not is_inside:
        wanted = f"(start, stop, weight) or (..., tag) within {length:,} characters"
        raise unexpected(span, wanted, "weights")
    # A wrong weight or tag is refused here, not where the tokens are weighed.
    if tag is not None:
        as_text(tag, "weights")
    return start, stop, as_weight(weight, "weights"), tag
