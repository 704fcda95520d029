"""Weights by kind and by function: text unchanged, wrong spans named."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btsft_nb.data.errors import RowError
from btsft_nb.data.kinds import Kind
from btsft_nb.data.messages import Block, Message
from btsft_nb.data.weights import cut_at_spans, kind_factors

TEXTS = st.text("ab c\n<>\U0001f600é", max_size=20)


def talk(*blocks: Block) -> list[Message]:
    return [Message("user", [Block("a b")]), Message("assistant", list(blocks))]


def cut(spans, *blocks: Block) -> list[Message]:
    """A talk of these blocks, cut at spans of its texts."""
    return [cut_at_spans(turn, lambda row, text: spans, {}) for turn in talk(*blocks)]


def by_character(message: Message) -> list[tuple]:
    """(character, weight, tag) of each character of a message."""
    return [(c, block.weight, block.tag) for block in message.blocks for c in block.text]


@st.composite
def turns(draw):
    """An assistant turn in weighted and tagged blocks, and spans of its text."""
    weights, tags = st.sampled_from([None, -1.0, 0.0, 0.5]), st.sampled_from([None, "x", "y"])
    blocks = draw(st.lists(st.builds(Block, TEXTS, weights, tags), max_size=4))
    size = sum(len(block.text) for block in blocks)
    ends = st.lists(st.integers(0, size), min_size=2, max_size=2).map(sorted)
    span = st.tuples(ends, st.sampled_from([-2, 0, 0.25, 3]), tags)
    return blocks, [(*ends, weight, tag) for ends, weight, tag in draw(st.lists(span, max_size=5))]


@given(turns())
def test_spans_weigh_what_they_cover_and_nothing_else(turn):
    """Against a plain loop over characters; the last span that covers one counts, and each tag stays till renamed."""
    blocks, spans = turn
    expected = by_character(Message("assistant", blocks))
    for i, (c, weight, own) in enumerate(expected):
        for start, stop, number, tag in spans:
            if start <= i < stop:
                weight, name = number, tag
                expected[i] = (c, weight, own if name is None else name)
    before = talk(*blocks)
    after = [cut_at_spans(turn, lambda row, text: spans, {}) for turn in before]
    assert by_character(after[1]) == expected
    assert [m.text for m in after] == [m.text for m in before] and after[0] == before[0]
    assert before == talk(*blocks), "the messages given are left as they were"
    assert len(after[1].blocks) <= len(blocks) + 2 * len(spans)


def test_kinds_are_factors_for_the_renderer():
    factors = kind_factors({"think": 0.5, "answer": 2, "tag": -1})
    assert [factors[kind] for kind in (Kind.TAG, Kind.THINK, Kind.ANSWER)] == [-1, 0.5, 2]
    assert kind_factors(None) == kind_factors({}) == kind_factors(len) == [1.0] * len(Kind)


def test_a_function_sees_row_and_text_of_each_assistant_turn():
    seen = []
    messages = [*talk(Block("one")), *talk(Block("t"), Block("wo"))]
    for turn in messages:
        cut_at_spans(turn, lambda row, text: seen.append((row["k"], text)) or [], {"k": 5})
    assert seen == [(5, "one"), (5, "two")]


@pytest.mark.parametrize(
    "span, said",
    [
        ((0, 9, 1), "(start, stop, weight) or (..., tag) within 3 characters, got "),
        ((-1, 2, 1), "(start, stop, weight) or (..., tag) within 3 characters, got "),
        ((2, 1, 1), "(start, stop, weight) or (..., tag) within 3 characters, got "),
        (
            (0, 1.0, 1),
            "expected (start, stop, weight) or (..., tag) within 3 characters, got (0, 1.0, 1)",
        ),
        ((0, 1, math.nan), "expected a weight between -1e6 and 1e6, got nan"),
        ((0, 1, math.inf), "expected a weight between -1e6 and 1e6, got inf"),
        ((0, 1, -1e7), "expected a weight between -1e6 and 1e6, got -10000000.0"),
        ((0, 1, True), "expected a weight between -1e6 and 1e6, got True"),
        ((0, 1, "1"), "expected a weight between -1e6 and 1e6, got '1'"),
        ((0, 1, None), "expected a weight between -1e6 and 1e6, got None"),
        ((0, 1, 1, 5), "expected text, got 5"),
        ((0, 1), "expected (start, stop, weight) or (..., tag) within 3 characters, got (0, 1)"),
        (
            (0, 1, 1, "a", 2),
            "(start, stop, weight) or (..., tag) within 3 characters, got (0, 1, 1, 'a', 2)",
        ),
        (7, "expected (start, stop, weight) or (..., tag) within 3 characters, got 7"),
    ],
)
def test_a_wrong_span_is_named(span, said):
    with pytest.raises(RowError) as caught:
        cut([span], Block("abc"))
    assert said in str(caught.value)


@pytest.mark.parametrize("spans", [None, 3])
def test_what_is_no_spans_is_named(spans):
    """A forgotten return, say."""
    with pytest.raises(RowError, match=f"field weights: expected spans, got {spans}"):
        cut(spans, Block("abc"))


def test_numpy_numbers_are_numbers():
    spans = [(np.int64(0), np.int32(2), np.float32(0.5))]
    (_, message) = cut(spans, Block("abc"))
    assert (
        json.dumps(by_character(message))
        == '[["a", 0.5, null], ["b", 0.5, null], ["c", null, null]]'
    )


@pytest.mark.parametrize(
    "weights, said",
    [
        ("think", "field weights: expected a dictionary or a function, got 'think'"),
        ([0.5], "field weights: expected a dictionary or a function, got [0.5]"),
        ({"thought": 1}, "must be one of 'tag', 'think', 'answer', got 'thought'"),
        ({"prompt": 1}, "must be one of 'tag', 'think', 'answer', got 'prompt'"),
        ({2: 1}, "must be one of 'tag', 'think', 'answer', got 2"),
        (
            {"think": math.nan},
            "field weights['think']: expected a weight between -1e6 and 1e6, got nan",
        ),
        (
            {"think": True},
            "field weights['think']: expected a weight between -1e6 and 1e6, got True",
        ),
    ],
)
def test_a_wrong_setting_says_what_would_do(weights, said):
    with pytest.raises(ValueError, match="weights") as caught:
        kind_factors(weights)
    assert said in str(caught.value)
