"""Intervals over prompts, and the summary of a set of samples."""

import math
import tracemalloc

import numpy as np
import pytest

from btsft_nb import RowError, evaluate, table
from btsft_nb.evaluation.metrics import interval, paired_difference, sums_interval
from btsft_nb.evaluation.summary import references_of


def test_the_interval_covers():
    """Of 200 samples of 40 coin tosses, about 95 % of the intervals hold the coin's bias."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        found = interval(rng.random(40) < 0.3)
        assert found["low"] <= found["value"] <= found["high"]
        hits += found["low"] <= 0.3 <= found["high"]
    assert 0.88 <= hits / 200 <= 0.99


def width(found: dict) -> float:
    return found["high"] - found["low"]


def test_an_interval_is_repeatable_and_narrows():
    """Equal each time; a quarter of the width for sixteen times the prompts; none where all are equal."""
    values = np.random.default_rng(0).random(50)
    assert interval(values) == interval(list(values))
    assert width(interval(values)) / width(interval(np.tile(values, 16))) == pytest.approx(
        4, rel=0.15
    )
    assert interval([0.5] * 9) == {"value": 0.5, "low": 0.5, "high": 0.5, "n": 9}


def test_the_interval_of_a_column_counts_what_is_known():
    """None is left out of the mean and of n; with none known there is no interval."""
    assert (
        interval([1, None, 0, None])
        == interval([1, 0])
        == {"value": 0.5, "low": 0, "high": 1, "n": 2}
    )
    assert interval([None]) is None and interval([]) is None


def test_the_interval_of_a_mean_as_sums_is_that_of_the_mean():
    """Sums and counts, resampled together: the same number, and as wide an interval."""
    values = np.random.default_rng(1).random(60)
    found, mean = sums_interval(np.c_[values, np.ones(60)], lambda s: s[0] / s[1]), interval(values)
    assert found["value"] == pytest.approx(mean["value"]) and found["n"] == 60
    assert width(found) == pytest.approx(width(mean), rel=0.1)
    with pytest.raises(ValueError, match="at least one prompt"):
        sums_interval([], sum)


def test_a_paired_difference_is_narrower():
    """What prompts share cancels; the interval of equal values is a point."""
    rng = np.random.default_rng(0)
    a = rng.random(100)
    b = a + 0.1 + 0.01 * rng.standard_normal(100)
    found = paired_difference(a, b)
    assert found["value"] == pytest.approx(np.mean(b - a)) and found["n"] == 100
    assert width(found) < width(interval(a)) / 10
    assert paired_difference([0, None, 1, 1], [1, 1, None, 2]) == {
        "value": 1,
        "low": 1,
        "high": 1,
        "n": 2,
    }


def test_an_interval_of_many_prompts_needs_little_memory():
    """Draws are made in batches: 2,000 times 20,000 prompts at once were 320 MB for the indices alone (bug 13)."""
    values = np.random.default_rng(0).random((20_000, 1))
    tracemalloc.start()
    found = interval(values[:, 0].tolist())
    assert tracemalloc.get_traced_memory()[1] < 60e6
    tracemalloc.stop()
    assert width(found) == pytest.approx(2 * 1.96 * values.std() / 20_000**0.5, rel=0.1)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [([1], [1, 2], "longer than"), ([1, None], [None, 1], "none of the 2 prompts has both")],
)
def test_a_paired_difference_wants_the_same_prompts(a, b, words):
    with pytest.raises(ValueError, match=words):
        paired_difference(a, b)


# ---------------------------------------------------------------------------------------------- summaries


def record(prompt: int, sample: int, text: str, **options) -> dict:
    return {
        "prompt": prompt,
        "sample": sample,
        "text": text,
        "prefilled": False,
        "finished": True,
    } | options


SAMPLES = [
    record(0, 0, "<think>Count</think>4"),
    record(0, 1, "<think>Count</think>5"),
    record(1, 0, "<think>Split</think>7"),
    record(1, 1, "7"),
    record(2, 0, "Guess</think>1", prefilled=True),
    record(2, 1, "<think>Count", finished=False),
]


def test_evaluate_by_hand():
    """Three prompts, two samples each."""
    summary = evaluate(
        SAMPLES, ["4", "7", "9"], lambda thought: {"Count": "count", "Split": "split"}.get(thought)
    )
    values = {name: metric["value"] for name, metric in summary["metrics"].items()}
    assert values == pytest.approx(
        {
            "compliance": (1 + 0.5 + 0.5) / 3,
            "unique thoughts": (1 + 1 + 1) / 2 / 3,  # of two samples each, one that fits and is new
            "different right thoughts": (0.5 + 0.5 + 0) / 3,
            "right ways": (1 + 1 + 0) / 3,
            "accuracy": (0.5 + 1 + 0) / 3,
            "pass@2": 2 / 3,
            "majority": (1 + 1 + 0) / 3,  # of one answer each the first
            "cut off": (0 + 0 + 0.5) / 3,
            "self-BLEU": (1 + 0) / 2,  # the second prompt has one thought only
            "ways of thinking": (1 + 1 + 1) / 3,
        }
    )
    assert summary["values"]["accuracy"] == [0.5, 1, 0] and summary["values"]["self-BLEU"] == [
        1,
        None,
        0,
    ]
    assert summary["values"]["distinct-2"] == [None] * 3  # no thought has two words
    assert {name: metric["n"] for name, metric in summary["metrics"].items()} == dict.fromkeys(
        values, 3
    ) | {"self-BLEU": 2}
    assert summary["unparsed"] == 1
    assert summary["problems"] == {"no open tag": 1, "cut off": 1}
    assert summary["ways"] == {"count": 3, "split": 1, "other": 2}
    assert (summary["prompts"], summary["samples"]) == (3, 6)
    assert all(
        metric["low"] <= metric["value"] <= metric["high"] for metric in summary["metrics"].values()
    )


def test_unique_thoughts_are_a_share_of_all_samples():
    """What is missing, empty, cut off or outside the format adds none; the other metrics are of what is there."""
    thoughts = [
        "<think>one two</think>",
        "<think>one  two</think>",
        "<think>one three</think>",
        "",
        "<think></think>",
    ]
    samples = [record(0, i, f"{thought}4") for i, thought in enumerate(thoughts)]
    samples += [record(1, i, "4") for i in range(5)]
    summary = evaluate(samples, ["4", "4"])
    assert summary["values"]["unique thoughts"] == [2 / 5, 0]
    assert summary["values"]["distinct-2"] == [pytest.approx(2 / 3), None]
    assert summary["values"]["different right thoughts"] == [2 / 5, 0]
    assert summary["metrics"]["unique thoughts"]["n"] == 2


@pytest.mark.parametrize("broken", ["4", "<think>one", "one</think>4", "Hm <think>two</think>4"])
def test_unique_thoughts_cannot_rise_as_compliance_falls(broken):
    """Bug 4: one thought in eight samples was all unique; and a cut made a second one of two that were alike."""
    whole = [record(0, i, "<think>one two</think>4") for i in range(8)]
    for kept in range(7, -1, -1):
        finished = broken != "<think>one"
        more = [record(0, i, broken, finished=finished) for i in range(kept, 8)]
        summary = evaluate(whole[:kept] + more, None)
        assert summary["values"]["unique thoughts"] == [1 / 8 if kept else 0]
        assert summary["values"]["compliance"] == [kept / 8]


def test_diversity_among_right_samples_by_hand():
    """Of six samples four are right; these have three different thoughts in two ways."""
    texts = ["Count a", "Count a", "Count b", "Split a", "Guess a", "Split b"]
    answers = "777789"
    samples = [record(0, i, f"<think>{text}</think>{answers[i]}") for i, text in enumerate(texts)]
    summary = evaluate(samples, ["7"], lambda thought: thought.split()[0])
    values = {name: column[0] for name, column in summary["values"].items()}
    assert values["unique thoughts"] == 5 / 6 and values["ways of thinking"] == 3
    assert values["different right thoughts"] == 3 / 6 and values["right ways"] == 2


def test_evaluate_without_ways_has_none():
    """The tiny problems know ways; other data need not."""
    summary = evaluate(SAMPLES, ["4", "7", "9"])
    assert "ways of thinking" not in summary["values"] and summary["ways"] == {}


def test_evaluate_without_references_judges_no_answer():
    """All else is as with them."""
    summary, judged = evaluate(SAMPLES, None), evaluate(SAMPLES, ["4", "7", "9"])
    kept = {
        name: value
        for name, value in judged["metrics"].items()
        if name not in ("accuracy", "pass@2", "majority", "different right thoughts")
    }
    assert summary["metrics"] == kept and summary["unparsed"] is None and judged["unparsed"] == 1


def test_evaluate_measures_thoughts_of_several_words():
    """Distinct pairs, ways, and what stands in the training thoughts, worked by hand."""
    thoughts = ["Count one two three", "Count one two three", "Split one two four", "Guess"]
    samples = [record(0, i, f"<think>{thought}</think>{i}") for i, thought in enumerate(thoughts)]
    ways = {"Count": "count", "Split": "split"}
    training = ["Split one two", "now Count one two three four"]
    summary = evaluate(
        samples, ["1"], lambda thought: ways.get(thought.split()[0]), training=training
    )
    values = {name: column[0] for name, column in summary["values"].items()}
    assert values["distinct-2"] == pytest.approx(5 / 9)
    assert values["ways of thinking"] == 2  # and one that has no name
    assert values["training 4-grams"] == pytest.approx((1 + 1 + 0) / 3)
    assert values["majority"] == 0 and values["pass@4"] == 1


def test_evaluate_reads_answers_as_it_is_told():
    """Boxed LaTeX and letters; what is not there is unparsed and wrong."""
    texts = [r"so \boxed{\frac{1}{2}}", "so 0.5", r"\boxed{0.5}"]
    samples = [record(0, i, f"<think>a</think>{text}") for i, text in enumerate(texts)]
    summary = evaluate(samples, [r"\dfrac12"], answer="boxed")
    assert summary["values"]["accuracy"] == [pytest.approx(2 / 3)] and summary["unparsed"] == 1
    assert summary["values"]["majority"] == [1]
    summary = evaluate([record(0, 0, "<think>a</think>The answer is (B).")], ["B"], answer="choice")
    assert summary["values"]["accuracy"] == [1] and "self-BLEU" not in summary["values"]


def test_what_cannot_be_compared_is_counted_and_wrong():
    """A time, where a number is wanted; prose, where a formula is; equal votes for one value in two spellings."""
    texts = ["at 9:30", "no idea", r"\boxed{\frac{\sqrt{8}}{2}}", r"\boxed{\sqrt2}", "it is 3"]
    samples = [record(0, i, f"<think>a</think>{text}") for i, text in enumerate(texts)]
    summary = evaluate(samples, [r"\sqrt{2}"])
    assert summary["unparsed"] == 2 and summary["values"]["accuracy"] == [2 / 5]
    assert summary["values"]["majority"] == [1]
    summary = evaluate(samples[:2], ["30"])
    assert summary["unparsed"] == 2 and summary["values"]["accuracy"] == [0]


def test_half_a_character_is_text():
    """As a thought, an answer, a question, a reference and a way, with all scores; it was no text to pandas."""
    half = "one two \ud83d three"
    samples = [record(0, i, f"<think>{half} {i}</think>{half}", question=half) for i in range(2)]
    summary = evaluate(samples, [half], lambda thought: thought, training=[half], text_scores=True)
    values = {name: metric["value"] for name, metric in summary["metrics"].items()}
    assert values["accuracy"] == values["unique thoughts"] == values["rougeL"] == 1
    assert summary["ways"] == {f"{half} 0": 1, f"{half} 1": 1}


def test_references_may_be_numbers():
    assert evaluate(SAMPLES, [4, 7, 9])["values"] == evaluate(SAMPLES, ["4", "7", "9"])["values"]


def test_references_of_rows():
    """In any case, numbers as text; some without, or one of another kind, are named by their row."""
    assert references_of([{"q": "a", "Answer": 4}, {"q": "b", "answer": "7"}]) == ["4", "7"]
    assert references_of([{"q": "a"}, "b"]) is None
    with pytest.raises(ValueError, match="rows: 1 of 2 rows have no answer, the first is row 1"):
        references_of([{"answer": "4"}, {"q": "b"}])
    with pytest.raises(
        RowError, match="rows, row 1: the reference 'five' has no answer of the kind"
    ):
        references_of([{"answer": "4"}, {"answer": "five"}], "number")


def test_evaluate_takes_records_in_any_order():
    """They are told apart by their prompt."""
    assert (
        evaluate(SAMPLES[::-1], ["4", "7", "9"])["metrics"]
        == evaluate(SAMPLES, ["4", "7", "9"])["metrics"]
    )


@pytest.mark.parametrize(
    ("samples", "references", "words"),
    [
        (SAMPLES, ["4", "7"], "2 references for prompts up to number 2"),
        (SAMPLES[:5], ["4", "7", "9"], r"same number of samples, got \[1, 2\]"),
        ([], [], "same number of samples"),
        (SAMPLES, ["4", "7", ""], "the reference '' has no answer of the kind 'auto'"),
    ],
)
def test_evaluate_refuses_what_does_not_match(samples, references, words):
    """With the numbers it was given."""
    with pytest.raises(ValueError, match=words):
        evaluate(samples, references)


def test_table_has_a_row_for_each_model():
    """In the order given, metrics as columns, value and interval in a cell."""
    one, two = evaluate(SAMPLES, ["4", "7", "9"]), evaluate(SAMPLES, ["5", "7", "1"])
    frame = table({"before": one, "after": two})
    assert list(frame.index) == ["before", "after"] and list(frame.columns) == list(one["metrics"])
    m = two["metrics"]["accuracy"]
    assert frame.loc["after", "accuracy"] == f"{m['value']:.2f} [{m['low']:.2f}, {m['high']:.2f}]"
    assert not math.isclose(m["value"], one["metrics"]["accuracy"]["value"])
