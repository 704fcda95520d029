"""What became of each row: sums that add up, parts that merge, and outliers found, in print, HTML and JSON."""

import json
import pickle
import re
import time
from dataclasses import asdict
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btsft_nb.data.kinds import Kind
from btsft_nb.data.render import Example
from btsft_nb.data.report import Report, Tally

FLAGS = ("unclosed", "untagged", "empty thought", "extra tags")


def example(prompt=5, thought=20, answer=4, name="row", flags=(), start=0) -> Example:
    """An example with so many tokens of each kind, all distinct, which count up from `start`."""
    kinds = [0] * prompt + [1] + [2] * thought + [1] + [3] * answer
    ids = list(range(start, start + len(kinds)))
    return Example(
        name, ids, [0.0] * prompt + [1.0] * (len(kinds) - prompt), kinds, flags=list(flags)
    )


@st.composite
def events(draw):
    """What happens to the rows of a set, in order: (row, example, or the reason why there is none)."""
    made = []
    for row in range(draw(st.integers(0, 12))):
        for _ in range(draw(st.integers(1, 2))):
            sizes = [draw(st.integers(0, 9)) for _ in range(3)]
            flags = draw(st.lists(st.sampled_from(FLAGS), unique=True))
            found = example(*sizes, name=f"s#{row}", flags=flags, start=draw(st.integers(0, 2)))
            made.append(
                (row, draw(st.sampled_from([found, found, "too long", "every weight is 0"])))
            )
    return made


def tallied(made: list) -> Tally:
    tally = Tally()
    for row, what in made:
        if isinstance(what, str):
            tally.drop(row, what)
        else:
            tally.add(row, what)
            if row % 3 == 0:
                tally.change(row, "a tag")
    return tally


@given(events())
def test_the_figures_add_up(made):
    """Each against a plain count over the examples."""
    report, kept = (
        tallied(made).report("s"),
        [(row, e) for row, e in made if not isinstance(e, str)],
    )
    assert report.rows == len({row for row, _ in made})
    assert report.kept + report.n_dropped == len(made) and report.kept == len(kept)
    assert report.dropped == {
        reason: [row for row, what in made if what == reason]
        for reason in {what for _, what in made if isinstance(what, str)}
    }
    assert report.changed == (
        {"a tag": changed} if (changed := [r for r, _ in kept if r % 3 == 0]) else {}
    )
    assert report.flagged == {
        flag: [row for row, e in kept if flag in e.flags]
        for flag in {f for _, e in kept for f in e.flags}
    }
    assert report.tokens == {k.name.lower(): sum(e.kinds.count(k) for _, e in kept) for k in Kind}
    assert report.supervised == sum(w != 0 for _, e in kept for w in e.weights)
    sizes = [len(e.input_ids) for _, e in kept]
    spread = report.lengths["sequence"]
    assert (spread["shortest"], spread["longest"]) == (min(sizes, default=0), max(sizes, default=0))
    assert all(
        list(spread.values()) == sorted(spread.values()) for spread in report.lengths.values()
    )
    seen = [e.input_ids for _, e in kept]
    assert report.duplicates == [row for i, (row, e) in enumerate(kept) if e.input_ids in seen[:i]]


@given(events(), st.integers(0, 24), st.integers(0, 24))
def test_parts_merge_into_the_whole(made, first, second):
    """Cut anywhere, and sent to another process and back."""
    cuts = [0, *sorted((first, second)), len(made)]
    total = Tally()
    for start, stop in pairwise(cuts):
        part = pickle.loads(pickle.dumps(tallied(made[start:stop])))
        assert all(total.merge(part))
    assert total.report("s", ["<think>"]) == tallied(made).report("s", ["<think>"])


@given(events(), st.integers(0, 24))
def test_dropped_duplicates_are_named(made, cut):
    """What is kept is distinct, what is not is in `dropped`, and no figure counts it."""
    kept = [(row, e) for row, e in made if not isinstance(e, str)]
    total = Tally()
    new = [
        mask
        for part in (made[:cut], made[cut:])
        for mask in total.merge(tallied(part), drop_duplicates=True)
    ]
    report, all_of_it = total.report("s"), tallied(made).report("s")
    distinct = [entry for entry, is_new in zip(kept, new, strict=True) if is_new]
    assert len({tuple(e.input_ids) for _, e in distinct}) == len(distinct) == report.kept
    assert {tuple(e.input_ids) for _, e in distinct} == {tuple(e.input_ids) for _, e in kept}
    assert (
        report.duplicates
        == all_of_it.duplicates
        == report.dropped.get("equal to an earlier example", [])
    )
    assert sum(report.tokens.values()) == sum(len(e.input_ids) for _, e in distinct)
    assert report.rows == all_of_it.rows and report.kept + report.n_dropped == len(made)
    assert not any(
        "same tokens" in reason for entry in report.suspicious for reason in entry["reasons"]
    )


@given(events())
def test_a_report_survives_json(made):
    report = tallied(made).report("s", ["<think>"])
    assert Report(**json.loads(json.dumps(asdict(report)))) == report


@pytest.mark.parametrize(
    "odd, reason",
    [
        (example(thought=400), "thought of 400 tokens, the median is 20"),
        (example(thought=2), "thought of 2 tokens, the median is 20"),
        (example(answer=50), "answer of 50 tokens, the median is 4"),
        (example(answer=1), "empty answer: 1 token, the end of turn"),
        (example(flags=["unclosed"], start=1), "unclosed, as 1 of 101 are"),
        (example(thought=18), "the same tokens as row 0"),
        (
            Example("r", [7] * 31, [1.0] * 31, [0] * 5 + [1] + [2] * 20 + [1] + [3] * 4),
            "repeats itself: 4% distinct tokens, the median is 100%",
        ),
    ],
)
def test_one_odd_row_among_many_is_found_with_its_reason(odd, reason):
    tally = Tally()
    for row in range(100):
        tally.add(row, example(thought=18 + row % 5, start=0 if row == 0 else 1000 * row))
    assert tally.report("s").suspicious == []
    tally.add(100, odd)
    (entry,) = tally.report("s").suspicious
    assert entry["row"] == 100 and reason in entry["reasons"]


def test_the_ten_worst_come_first():
    """A flag that few have surprises more than one that most have; more reasons more than one; ties by row."""
    tally = Tally()
    for row in range(40):
        flags = ["untagged"] * (row % 2) + ["unclosed"] * (row == 7)
        tally.add(row, example(thought=900 if row == 20 else 20, flags=flags, start=row))
    report = tally.report("s")
    rows = [entry["row"] for entry in report.suspicious]
    assert rows == [20, 7, *(row for row in range(1, 40, 2) if row != 7)][:10]
    assert report.suspicious[1]["reasons"] == [
        "unclosed, as 1 of 40 are",
        "untagged, as 20 of 40 are",
    ]
    assert report == tally.report("s")


def full_report() -> Report:
    """One with all that a report can hold, from hostile text."""
    tally, hostile = Tally(), "<img src=x onerror=alert(1)>\"'&\x1b[31m"
    for row in range(60):
        tally.add(
            row, example(prompt=40 + row % 7, thought=90 + 3 * (row % 11), answer=12, start=row)
        )
    tally.add(
        60,
        example(
            prompt=40, thought=2000, answer=12, name=hostile, flags=["unclosed", hostile], start=60
        ),
    )
    tally.add(61, example(prompt=40, thought=90, answer=12, name="x" * 500))
    for row in range(62, 1500):
        tally.drop(row, "longer than max_length=2048")
    tally.drop(1500, hostile)
    tally.change(3, hostile)
    for row in range(9):
        tally.change(row, "<reasoning> -> <think>")
    return tally.report(hostile, [hostile, "</think>"])


class Reader(HTMLParser):
    """Notes the elements, attributes and text of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.elements, self.attributes, self.text, self.open = set(), set(), "", []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_html_holds_hostile_text_as_text():
    """Well-formed, no element but our own, no attribute but style, nothing fetched, no fixed text colour."""
    report = full_report()
    page = report._repr_html_()
    read = Reader(page)
    assert read.elements == {"div", "span", "pre"} and not read.open
    assert read.attributes == {"style"}
    assert "<img src=x onerror=alert(1)>\"'&" in read.text and "url(" not in page
    assert not re.search(r"[;\"]color:(?!inherit)", page)
    assert str(report) in read.text


def test_print_is_short_and_in_place():
    """Row numbers are cut after eight, ids too, and no control character reaches the terminal."""
    report = full_report()
    printed = str(report)
    assert (
        "1,438 (rows 62, 63, 64, 65, 66, 67, 68, 69, ...): longer than max_length=2048" in printed
    )
    assert (
        "9 (rows 0, 1, 2, 3, 4, 5, 6, 7, ...): <reasoning>" in printed and "x" * 58 not in printed
    )
    assert all(c == "\n" or c.isprintable() for c in printed) and "\x1b" not in report._repr_html_()
    assert "1,501 rows -> 62 examples of 144 to 2,054 tokens" in printed
    for name in (
        "tokens",
        "lengths",
        "dropped",
        "changed",
        "flagged",
        "duplicates",
        "added tags",
        "suspicious",
    ):
        assert f"\n  {name}" in printed


def test_nothing_kept_is_still_a_report():
    tally = Tally()
    tally.drop(0, "too long")
    report = tally.report("s")
    assert (report.rows, report.kept, report.lengths["sequence"]["longest"], report.suspicious) == (
        1,
        0,
        0,
        [],
    )
    assert "1 rows -> 0 examples" in str(report) and "too long" in report._repr_html_()


def test_counting_costs_little():
    """At most 20 microseconds an example of 150 tokens, here with room for a slow machine."""
    generator = np.random.default_rng(0)
    made = [
        example(prompt=60, thought=80, answer=8, start=int(n))
        for n in generator.integers(0, 10**5, 500)
    ]
    times = []
    for _ in range(5):
        tally, start = Tally(), time.perf_counter()
        for row, one in enumerate(made):
            tally.add(row, one)
        times.append(time.perf_counter() - start)
    assert min(times) / len(made) < 60e-6
