"""What completions are worth: parsing, accuracy, pass@k, intervals, and the summary of a set of samples."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btsft_nb import evaluate, table
from btsft_nb.metrics import Parsed, bootstrap, is_correct, last_number, parse, pass_at_k, unique_share

PARSED = {
    "fits": ("<think>a</think>b", {}, Parsed("a", "b", None)),
    "fits on lines": ("\n<think>\na\n</think>\n\nb\n", {}, Parsed("a", "b", None)),
    "empty": ("", {}, Parsed("", "", "no open tag")),
    "no tags": ("just b", {}, Parsed("", "just b", "no open tag")),
    "lone close": ("a</think>b", {}, Parsed("a", "b", "no open tag")),
    "no close": ("<think>a and b", {}, Parsed("a and b", "", "no close tag")),
    "empty thought": ("<think></think>b", {}, Parsed("", "b", "empty thought")),
    "blank thought": ("<think> \n\t</think>b", {}, Parsed("", "b", "empty thought")),
    "no answer": ("<think>a</think>", {}, Parsed("a", "", "no answer")),
    "blank answer": ("<think>a</think> \n", {}, Parsed("a", "", "no answer")),
    "text before": ("Sure. <think>a</think>b", {}, Parsed("a", "b", "text before the thought")),
    "close first": ("</think><think>a</think>b", {}, Parsed("a", "b", "text before the thought")),
    "second close": ("<think>a</think>b</think>c", {}, Parsed("a", "b</think>c", "more than one close tag")),
    "second open": ("<think>a</think>b<think>c", {}, Parsed("a", "b<think>c", "more than one open tag")),
    "second thought": (
        "<think>a</think><think>b</think>c", {}, Parsed("a", "<think>b</think>c", "more than one open tag")
    ),
    "nested": ("<think>a<think>b</think>c</think>d", {}, Parsed("a<think>b", "c</think>d", "more than one open tag")),
    "other case": ("<THINK>a</THINK>b", {}, Parsed("", "<THINK>a</THINK>b", "no open tag")),
    "prefilled": ("a</think>b", {"prefilled": True}, Parsed("a", "b", None)),
    "prefilled, opened again": (
        "<think>a</think>b", {"prefilled": True}, Parsed("<think>a", "b", "more than one open tag")
    ),
    "prefilled, empty thought": ("</think>b", {"prefilled": True}, Parsed("", "b", "empty thought")),
    "prefilled, no close": ("a and b", {"prefilled": True}, Parsed("a and b", "", "no close tag")),
    "cut off in the thought": ("<think>a", {"finished": False}, Parsed("a", "", "cut off")),
    "cut off in the answer": ("<think>a</think>b", {"finished": False}, Parsed("a", "b", "cut off")),
    "prefilled, cut off": ("a", {"prefilled": True, "finished": False}, Parsed("a", "", "cut off")),
}  # fmt: skip


@pytest.mark.parametrize(("text", "options", "parsed"), PARSED.values(), ids=PARSED)
def test_parse(text, options, parsed):
    """The strict grammar, thought and answer, and the first thing that is wrong."""
    assert parse(text, **options) == parsed


@given(st.lists(st.sampled_from(["<think>", "</think>", "a", "\n", " "]), max_size=8).map("".join), st.booleans())
def test_a_text_complies_exactly_where_the_grammar_says_so(text, prefilled):
    """Against the grammar written another way."""
    whole = "<think>" + text if prefilled else text
    tags = [tag for tag in whole.replace("<think>", "|(|").replace("</think>", "|)|").split("|") if tag in ("(", ")")]
    fits = tags == ["(", ")"] and whole.lstrip().startswith("<think>")
    fits = fits and all(part.strip() for part in whole.lstrip()[len("<think>") :].split("</think>"))
    assert (parse(text, prefilled=prefilled).problem is None) == fits


@given(st.text(max_size=30), st.booleans(), st.booleans())
def test_parse_takes_any_text(text, prefilled, finished):
    """Thought and answer are pieces of it."""
    parsed = parse(text, prefilled=prefilled, finished=finished)
    assert parsed.thought in text and parsed.answer in text


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("The answer is 42.", "42", True),
        ("42 is what 6*7 gives, so 42", "42", True),
        ("first 42, then 41", "42", False),
        ("It costs $1,234.50 in all", "1234.5", True),
        ("1234567", "1,234,567", True),
        ("1,000", "1000.0", True),
        ("-5", "5", False),
        ("it is -5 degrees", "-5", True),
        ("+5", "5", True),
        ("0.1", "0.10", True),
        ("0.1000001", "0.1", False),
        ("100000001", "100000002", False),
        ("five", "5", False),
        ("", "5", False),
        ("0", "0", True),
        ("-0.0", "0", True),
        ("yes", "yes", True),
        (" north   pole ", "north\npole", True),
        ("the north pole", "north pole", False),
        ("", "yes", False),
    ],
)
def test_is_correct(answer, reference, right):
    """By the last number where the reference has one, else by the words."""
    assert is_correct(answer, reference) is right


@pytest.mark.parametrize(("text", "number"), [("a 1,000 and 2.50.", 2.5), ("none", None), ("x-7", -7.0), ("3, 4", 4.0)])
def test_last_number(text, number):
    """Punctuation that follows is no part of it."""
    assert last_number(text) == number


@pytest.mark.parametrize(("text", "number"), [("10-3", 3.0), ("7 to 9, 7-9", 9.0), (".5", 0.5), ("\u22125", -5.0)])
def test_last_number_as_people_write_them(text, number):
    """Ranges and differences, no leading zero, the typographic minus."""
    assert last_number(text) == number


@pytest.mark.parametrize(("n", "correct"), [(n, c) for n in range(1, 7) for c in range(n + 1)])
def test_pass_at_k_counts_the_subsets_with_a_right_one(n, correct):
    """Against all subsets of size k, for every k."""
    samples = [1] * correct + [0] * (n - correct)
    for k in range(1, n + 1):
        subsets = list(combinations(samples, k))
        assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def test_pass_at_k_stays_exact_for_many_samples():
    """No overflow, no cancellation."""
    assert pass_at_k(1000, 1, 500) == pytest.approx(0.5)
    assert pass_at_k(1000, 500, 1) == pytest.approx(0.5)


@pytest.mark.parametrize("k", [0, -1, 4])
def test_pass_at_k_refuses_a_k_out_of_range(k):
    """With the range."""
    with pytest.raises(ValueError, match=f"k={k}: 1 to n=3"):
        pass_at_k(3, 1, k)


@pytest.mark.parametrize(
    ("texts", "share"),
    [
        (["a"], 1),
        (["a", "a"], 0.5),
        (["a", "b"], 1),
        (["a b", " a\n b ", "a  b"], 1 / 3),
        (["", " "], 0.5),
        (["a", "A"], 1),
    ],
)
def test_unique_share(texts, share):
    """White space is folded, nothing else."""
    assert unique_share(texts) == pytest.approx(share)


def test_the_interval_covers():
    """Of 200 samples of 40 coin tosses, about 95 % of the intervals hold the coin's bias."""
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        value, low, high = bootstrap(rng.random(40) < 0.3, draws=500)
        assert low <= value <= high
        hits += low <= 0.3 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_bootstrap_is_repeatable_and_narrows():
    """Equal for a seed; a quarter of the width for sixteen times the prompts; none where all are equal."""
    values = np.random.default_rng(0).random(50)
    assert bootstrap(values) == bootstrap(list(values))
    assert bootstrap(values) != bootstrap(values, seed=1)
    widths = [high - low for _, low, high in (bootstrap(values), bootstrap(np.tile(values, 16)))]
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.15)
    assert bootstrap([0.5] * 9) == (0.5, 0.5, 0.5)


def test_bootstrap_takes_another_statistic():
    """Any that numpy calls with an axis."""
    value, low, high = bootstrap([1, 2, 3, 4, 100], np.median)
    assert value == 3 and 1 <= low <= 3 <= high <= 100


# ---------------------------------------------------------------------------------------------- summaries


def record(prompt: int, sample: int, text: str, **options) -> dict:
    return {"prompt": prompt, "sample": sample, "text": text, "prefilled": False, "finished": True} | options


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
    summary = evaluate(SAMPLES, ["4", "7", "9"], lambda thought: {"Count": "count", "Split": "split"}.get(thought))
    values = {name: metric["value"] for name, metric in summary["metrics"].items()}
    assert values == pytest.approx(
        {
            "compliance": (1 + 0.5 + 0.5) / 3,
            "unique thoughts": (0.5 + 1 + 1) / 3,
            "accuracy": (0.5 + 1 + 0) / 3,
            "pass@2": 2 / 3,
            "ways of thinking": (1 + 1 + 1) / 3,
        }
    )
    assert summary["problems"] == {"no open tag": 1, "cut off": 1}
    assert summary["ways"] == {"count": 3, "split": 1, "other": 2}
    assert (summary["prompts"], summary["samples"]) == (3, 6)
    assert all(metric["low"] <= metric["value"] <= metric["high"] for metric in summary["metrics"].values())


def test_evaluate_without_ways_has_none():
    """The tiny problems know ways; other data need not."""
    summary = evaluate(SAMPLES, ["4", "7", "9"])
    assert "ways of thinking" not in summary["metrics"] and summary["ways"] == {}


def test_evaluate_takes_records_in_any_order():
    """They are told apart by their prompt."""
    assert evaluate(SAMPLES[::-1], ["4", "7", "9"])["metrics"] == evaluate(SAMPLES, ["4", "7", "9"])["metrics"]


@pytest.mark.parametrize(
    ("samples", "references", "words"),
    [
        (SAMPLES, ["4", "7"], "2 references for 3 prompts up to number 2"),
        (SAMPLES[:5], ["4", "7", "9"], r"same number of samples, got \[1, 2\]"),
        ([], [], "same number of samples"),
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
