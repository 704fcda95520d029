"""What became of each row: sums that add up, and outliers found, in print and JSON."""

import json
import time
from dataclasses import asdict

import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btsft_nb.data.kinds import Kind
from btsft_nb.data.render import Example
from btsft_nb.data.report import Report, drop_duplicates, figures, make_report

FLAGS = ("unclosed", "untagged", "empty thought", "extra tags")


def example(prompt=5, thought=20, answer=4, name="row", flags=(), start=0) -> Example:
    """An example with so many tokens of each kind, all distinct, which count up from `start`."""
    kinds = [0] * prompt + [1] + [2] * thought + [1] + [3] * answer
    ids = list(range(start, start + len(kinds)))
    return Example(
        name, ids, [0.0] * prompt + [1.0] * (len(kinds) - prompt), kinds, flags=list(flags)
    )


def outcomes(made: list) -> pd.DataFrame:
    """The frame that a report is made of, from (row, example or the reason why there is none, changes)."""
    nothing = Example("", [], [], [])
    examples = [nothing if isinstance(what, str) else what for _, what, _ in made]
    columns = {
        name: pa.array([getattr(one, name) for one in examples], pa.list_(kind))
        for name, kind in (
            ("input_ids", pa.int32()),
            ("weights", pa.float32()),
            ("kinds", pa.int8()),
        )
    }
    frame = pd.DataFrame(figures(pa.table(columns)))
    frame["row"] = [row for row, _, _ in made]
    frame["id"] = [one.id for one in examples]
    frame["flags"] = [one.flags for one in examples]
    frame["dropped"] = [what if isinstance(what, str) else None for _, what, _ in made]
    frame["changed"] = [changed for _, _, changed in made]
    return frame


def report_on(examples: list[Example], source: str = "s") -> Report:
    """The report on one example a row."""
    made = [(row, one, []) for row, one in enumerate(examples)]
    return make_report(outcomes(made), source)


@st.composite
def events(draw):
    """What happens to the rows of a set, in order: (row, example or the reason why there is none, changes)."""
    made = []
    for row in range(draw(st.integers(0, 12))):
        for _ in range(draw(st.integers(1, 2))):
            sizes = [draw(st.integers(0, 9)) for _ in range(3)]
            flags = draw(st.lists(st.sampled_from(FLAGS), unique=True))
            one = example(*sizes, name=f"s#{row}", flags=flags, start=draw(st.integers(0, 2)))
            what = draw(st.sampled_from([one, one, "too long", "every weight is 0"]))
            made.append((row, what, ["a tag"] if row % 3 == 0 else []))
    return made


@given(events())
def test_the_figures_add_up(made):
    """Each against a plain count over the examples."""
    report = make_report(outcomes(made), "s", ["<think>"])
    assert Report(**json.loads(json.dumps(asdict(report)))) == report
    kept = [(row, what) for row, what, _ in made if not isinstance(what, str)]
    reasons = [(row, what) for row, what, _ in made if isinstance(what, str)]
    assert report.rows == len({row for row, _, _ in made})
    assert report.kept + report.n_dropped == len(made) and report.kept == len(kept)
    assert report.dropped == {
        reason: [row for row, what in reasons if what == reason] for _, reason in reasons
    }
    changed = sorted({row for row, _, _ in made if row % 3 == 0})
    assert report.changed == ({"a tag": changed} if changed else {})
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


@given(events())
def test_figures_count_each_example_by_itself(made):
    """Whatever others stand in the table."""
    frame = outcomes(made)
    for i, (_, what, _) in enumerate(made):
        one = Example("", [], [], []) if isinstance(what, str) else what
        for kind in Kind:
            assert frame[kind.name.lower()][i] == one.kinds.count(kind)
        completion = [t for t, k in zip(one.input_ids, one.kinds, strict=True) if k]
        assert frame["distinct"][i] * max(len(completion), 1) == pytest.approx(len(set(completion)))
        for j, (_, other, _) in enumerate(made[:i]):
            ids = [] if isinstance(other, str) else other.input_ids
            assert (frame["digest"][i] == frame["digest"][j]) == (ids == one.input_ids)


@given(events())
def test_dropped_duplicates_are_named(made):
    """What is kept is distinct, what is not is in `dropped`, and no figure counts it."""
    all_of_it = make_report(outcomes(made), "s")
    fewer = outcomes(made)
    drop_duplicates(fewer)
    report = make_report(fewer, "s")
    different = {tuple(e.input_ids) for _, e, _ in made if not isinstance(e, str)}
    assert report.kept == len(different)
    assert report.duplicates == all_of_it.duplicates
    assert report.duplicates == report.dropped.get("equal to an earlier example", [])
    assert sum(report.tokens.values()) == sum(map(len, different))
    assert report.rows == all_of_it.rows and report.kept + report.n_dropped == len(made)


@pytest.mark.parametrize(
    "odd, reason",
    [
        (example(thought=400), "400 tokens of thought, the median is 20"),
        (example(thought=2), "2 tokens of thought, the median is 20"),
        (example(answer=50), "50 tokens of answer, the median is 4"),
        (example(answer=1), "1 tokens of answer, the median is 4"),
        (
            Example("r", [7] * 31, [1.0] * 31, [0] * 5 + [1] + [2] * 20 + [1] + [3] * 4),
            "0.04 as share of distinct tokens, the median is 1",
        ),
    ],
)
def test_one_odd_row_among_many_is_found_with_its_reason(odd, reason):
    usual = [
        example(thought=18 + row % 5, start=0 if row == 0 else 1000 * row) for row in range(100)
    ]
    assert report_on(usual).suspicious == []
    (entry,) = report_on([*usual, odd]).suspicious
    assert entry["row"] == 100 and reason in entry["reasons"]


def test_an_empty_answer_is_always_suspicious():
    """Also where answers are so short that it is not far from the median."""
    (entry,) = report_on(
        [example(answer=2, start=row) for row in range(9)] + [example(answer=1)]
    ).suspicious
    assert entry == {"row": 9, "id": "row", "reasons": ["1 tokens of answer, the median is 2"]}


def test_the_ten_worst_come_first():
    """Two reasons count more than one; what is equally far comes by row. Flags and copies are told elsewhere."""
    examples = []
    for row in range(60):
        thought = {20: 9000, 30: 900}.get(row, 200 if row % 5 == 4 else 20)
        examples.append(example(5, thought, 900 if row == 30 else 4, flags=["unclosed"], start=row))
    report = report_on(examples)
    rows = [entry["row"] for entry in report.suspicious]
    assert rows == [30, 20, 4, 9, 14, 19, 24, 29, 34, 39]
    assert report.suspicious[0]["reasons"] == [
        "900 tokens of thought, the median is 20",
        "900 tokens of answer, the median is 4",
    ]
    assert report == report_on(examples)


def full_report() -> Report:
    """One with all that a report can hold, from hostile text."""
    hostile = "<img src=x onerror=alert(1)>\"'&\x1b[31m"
    odd = example(40, 2000, 12, name=hostile, flags=["unclosed", hostile], start=60)
    usual = [example(40 + row % 7, 90 + 3 * (row % 11), 12, start=row) for row in range(60)]
    kept = [*usual, odd, example(40, 90, 12, name="x" * 500)]
    made = [(row, one, []) for row, one in enumerate(kept)]
    for row in range(9):
        made[row][2].append("<reasoning> -> <think>")
    made[3][2].append(hostile)
    made += [(row, "longer than max_length=2048", []) for row in range(62, 1500)]
    made.append((1500, hostile, []))
    return make_report(outcomes(made), hostile, [hostile, "</think>"])


def test_print_is_short_and_in_place():
    """Row numbers are cut after six, ids too, and no control character reaches the terminal."""
    report = full_report()
    printed = str(report)
    assert "1,438 (rows 62, 63, 64, 65, 66, 67, ...): longer than max_length=2048" in printed
    assert "9 (rows 0, 1, 2, 3, 4, 5, ...): <reasoning>" in printed and "x" * 58 not in printed
    assert all(c == "\n" or c.isprintable() for c in printed + repr(report))
    assert "1,501 rows -> 62 examples" in printed
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
    report = make_report(outcomes([(0, "too long", [])]), "s")
    assert (report.rows, report.kept, report.suspicious) == (1, 0, [])
    assert report.lengths["sequence"]["longest"] == 0
    assert "1 rows -> 0 examples" in str(report) and "too long" in repr(report)


def test_counting_costs_little():
    """At most 20 microseconds an example of 150 tokens, here with room for a slow machine."""
    examples = [example(60, 80, 8, start=1000 * n) for n in range(500)]
    table = pa.table(
        {
            "input_ids": [one.input_ids for one in examples],
            "kinds": [one.kinds for one in examples],
            "weights": [one.weights for one in examples],
        }
    )
    times = []
    for _ in range(5):
        start = time.process_time()
        figures(table)
        times.append(time.process_time() - start)
    assert min(times) / len(examples) < 60e-6
