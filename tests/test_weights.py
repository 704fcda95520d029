"""Weights by kind, pattern, function and sentence importances: text unchanged, wrong spans named."""

import json
import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btsft_nb.data.errors import RowError
from btsft_nb.data.kinds import Kind
from btsft_nb.data.messages import Block, Message
from btsft_nb.data.weights import Weighting, sentence_weights

TEXTS = st.text("ab c\n<>\U0001f600é", max_size=20)


def talk(*blocks: Block) -> list[Message]:
    return [Message("user", [Block("a b")]), Message("assistant", list(blocks))]


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
    after = Weighting(lambda row, text: spans).apply(before, {})
    assert by_character(after[1]) == expected
    assert [m.text for m in after] == [m.text for m in before] and after[0] == before[0]
    assert before == talk(*blocks), "the messages given are left as they were"
    assert len(after[1].blocks) <= len(blocks) + 2 * len(spans)


def test_kinds_are_factors_for_the_renderer():
    weighting = Weighting({"think": 0.5, "answer": 2, "tag": -1})
    assert [weighting.factors[kind] for kind in (Kind.TAG, Kind.THINK, Kind.ANSWER)] == [-1, 0.5, 2]
    messages = talk(Block("<think>a</think>b", 0.25))
    assert weighting.apply(messages, {}) == messages
    assert Weighting(None).factors == Weighting({}).factors == [1.0] * len(Kind)
    assert Weighting(None).apply(messages, {}) == messages


def test_patterns_weigh_their_matches_later_keys_first():
    weighting = Weighting(
        {re.compile(r"\d+"): 3, re.compile("wait"): -1, re.compile("7"): 0, "think": 0.5}
    )
    (_, message) = weighting.apply(talk(Block("wait, 12+17 "), Block("is 29", 0.5, "sum")), {})
    assert [(b.text, b.weight, b.tag) for b in message.blocks] == [
        ("wait", -1, None), (", ", None, None), ("12", 3, None), ("+", None, None), ("1", 3, None), ("7", 0, None),
        (" ", None, None), ("is ", 0.5, "sum"), ("29", 3, "sum"),
    ]  # fmt: skip
    assert weighting.factors[Kind.THINK] == 0.5


def test_a_function_sees_row_and_text_of_each_assistant_turn():
    seen = []
    messages = [*talk(Block("one")), *talk(Block("t"), Block("wo"))]
    Weighting(lambda row, text: seen.append((row["k"], text)) or []).apply(messages, {"k": 5})
    assert seen == [(5, "one"), (5, "two")]


@pytest.mark.parametrize(
    "span, said",
    [
        ((0, 9, 1), "expected a span within 3 characters, got "),
        ((-1, 2, 1), "expected a span within 3 characters, got "),
        ((2, 1, 1), "expected a span within 3 characters, got "),
        ((0, 1.0, 1), "expected (start, stop, weight) or (..., tag), got (0, 1.0, 1)"),
        ((0, 1, math.nan), "expected a weight between -1e6 and 1e6, got nan"),
        ((0, 1, math.inf), "expected a weight between -1e6 and 1e6, got inf"),
        ((0, 1, -1e7), "expected a weight between -1e6 and 1e6, got -10000000.0"),
        ((0, 1, True), "expected a weight between -1e6 and 1e6, got True"),
        ((0, 1, "1"), "expected a weight between -1e6 and 1e6, got '1'"),
        ((0, 1, None), "expected a weight between -1e6 and 1e6, got None"),
        ((0, 1, 1, 5), "expected text, got 5"),
        ((0, 1), "expected (start, stop, weight) or (..., tag), got (0, 1)"),
        (7, "expected (start, stop, weight) or (..., tag), got 7"),
    ],
)
def test_a_wrong_span_is_named(span, said):
    with pytest.raises(RowError) as caught:
        Weighting(lambda row, text: [span]).apply(talk(Block("abc")), {})
    assert said in str(caught.value)


def test_no_spans_at_all_is_an_error():
    with pytest.raises(RowError, match="expected spans from the function for weights, got None"):
        Weighting(lambda row, text: None).apply(talk(Block("abc")), {})


def test_numpy_numbers_are_numbers():
    spans = [(np.int64(0), np.int32(2), np.float32(0.5))]
    (_, message) = Weighting(lambda row, text: spans).apply(talk(Block("abc")), {})
    assert (
        json.dumps(by_character(message))
        == '[["a", 0.5, null], ["b", 0.5, null], ["c", null, null]]'
    )


@pytest.mark.parametrize(
    "weights, said",
    [
        ("think", "must be a dictionary or a function, got 'think'"),
        ([0.5], "must be a dictionary or a function, got [0.5]"),
        (
            {"thought": 1},
            "'thought' is no compiled pattern, think, answer or tag",
        ),
        ({"prompt": 1}, "'prompt' is no compiled pattern"),
        ({re.compile(b"x"): 1}, "re.compile(b'x') is no compiled pattern"),
        ({2: 1}, "2 is no compiled pattern"),
        (
            {"think": math.nan},
            "weights['think'] must be a number between -1000000.0 and 1000000.0, got nan",
        ),
        (
            {"think": True},
            "weights['think'] must be a number between -1000000.0 and 1000000.0, got True",
        ),
        (
            {re.compile("x"): "1"},
            "weights[re.compile('x')] must be a number between -1000000.0 and 1000000.0, got '1'",
        ),
    ],
)
def test_a_wrong_setting_says_what_would_do(weights, said):
    with pytest.raises(ValueError, match="weights") as caught:
        Weighting(weights)
    assert said in str(caught.value)


def row(*pieces: tuple) -> dict:
    return {
        "chunks": [
            {"chunk": text, "importance": weight, "tags": tags} for text, weight, tags in pieces
        ]
    }


def test_sentences_weigh_what_their_pieces_say():
    """White space may differ, a repeated sentence is found in order, and what follows a piece belongs to it."""
    pieces = row(
        ("So  it is.", 0.5, ["plan", "x"]),
        ("So it\tis.", -1, []),
        (" \n", 9, None),
        ("7 !", 2, "end"),
    )
    spans = list(
        sentence_weights(tag="tags")(pieces, "<think>\nSo it is.\n\nSo it is. 7!\n</think>\n\n7!")
    )
    assert spans == [(8, 19, 0.5, "plan"), (19, 29, -1, None), (29, 32, 2, "end")]
    (_, message) = Weighting(sentence_weights(weight=lambda piece: piece["importance"] * 2)).apply(
        talk(Block("So it is. So it is. 7!")), pieces
    )
    assert [(b.text, b.weight) for b in message.blocks] == [
        ("So it is. ", 1),
        ("So it is. ", -2),
        ("7!", 4),
    ]


@given(st.lists(st.tuples(TEXTS, st.floats(-9, 9)), max_size=6), st.data())
def test_pieces_of_a_text_tile_it(cut, data):
    """A text cut anywhere, its white space changed: each piece gets its characters back."""
    texts = [text for text, _ in cut]
    loose = [re.sub(r"\s+", data.draw(st.sampled_from([" ", "\n", ""])), text) for text in texts]
    pieces = row(*((text, weight, None) for text, (_, weight) in zip(loose, cut, strict=True)))
    turn = "".join(texts)
    weight_of = {
        i: weight for a, b, weight, _ in sentence_weights()(pieces, turn) for i in range(a, b)
    }
    owner = [weight for text, weight in cut for _ in text]
    assert all(weight_of[i] == owner[i] for i, c in enumerate(turn) if not c.isspace())


@pytest.mark.parametrize(
    "broken, said",
    [
        ({}, "field chunks: expected a list of pieces"),
        ({"chunks": {"chunk": "a"}}, "field chunks: expected a list of pieces"),
        ({"chunks": ["a"]}, "field chunks[0]: expected a piece with 'chunk', got 'a'"),
        (
            {"chunks": [{"chunk": 5, "importance": 1}]},
            "field chunks[0].chunk: expected text, got 5",
        ),
        (
            row(("a", 1, None), ("c", 1, None)),
            "field chunks[1]: expected a piece of the assistant's turn, got 'c'",
        ),
        (
            row(("b", 1, None), ("a", 1, None)),
            "field chunks[1]: expected a piece of the assistant's turn, got 'a'",
        ),
        (
            row(("a", math.nan, None)),
            "field chunks[0]: expected a weight between -1e6 and 1e6, got nan",
        ),
        (
            row(("a", None, None)),
            "field chunks[0]: expected a weight between -1e6 and 1e6, got None",
        ),
        (
            row(("a", [[[]]], None)),
            "field chunks[0]: expected a weight between -1e6 and 1e6, got [[[]]]",
        ),
        (row(("a", 1, [5])), "field chunks[0].tags: expected text, got 5"),
    ],
)
def test_a_malformed_piece_is_named(broken, said):
    with pytest.raises(RowError) as caught:
        sentence_weights(tag="tags")(broken, "a b")
    assert said in str(caught.value)


def test_all_sentences_of_real_traces_are_found(shared):
    """2,929 sentences of 20 R1 traces, of which 46 differ from their trace in white space."""
    lines = (
        (shared / "datasets" / "r1_traces" / "thought_anchors_20.jsonl").read_text().splitlines()
    )
    traces, found = [json.loads(line) for line in lines], 0
    weigh = sentence_weights(weight="counterfactual_importance_kl", tag="function_tags")
    for trace in traces:
        spans, turn = weigh(trace, trace["solution"]), trace["solution"]
        found += len(spans)
        assert turn.lstrip().startswith("".join(turn[a:b] for a, b, _, _ in spans)), (
            "they tile the thought"
        )
        for (a, b, weight, tag), piece in zip(spans, trace["chunks"], strict=True):
            assert turn[a:b].split() == piece["chunk"].split() and tag == piece["function_tags"][0]
            assert weight == piece["counterfactual_importance_kl"]
    assert found == 2929
