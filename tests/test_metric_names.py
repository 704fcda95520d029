"""Metrics by name, in a table and a figure: what no model has is left out, and a misspelt name is refused."""

import re

import matplotlib
import matplotlib.pyplot as plt
import pytest

from btsft_nb import evaluate, plots, table

matplotlib.use("Agg")
TEXTS = ["<think>3 + 4</think>7", "<think>4 + 3</think>7", "7", "<think>it is</think>9"]
SAMPLES = [
    {"prompt": i // 2, "sample": i % 2, "text": text, "prefilled": False, "finished": True}
    for i, text in enumerate(TEXTS)
]
WAYS = evaluate(SAMPLES, None, lambda thought: thought[:1])
RIGHT = evaluate(SAMPLES, ["7", "9"])
NAMES = ["ways of thinking", "pass@8", "rouge1", "accuracy", "compliance"]


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


def test_a_table_leaves_out_what_no_model_has():
    """Of the metrics that are named, in their order; a dash where one model lacks what another has."""
    frame = table({"ways": WAYS, "right": RIGHT}, *NAMES)
    assert list(frame.columns) == ["ways of thinking", "accuracy", "compliance"]
    assert frame.loc["right", "ways of thinking"] == frame.loc["ways", "accuracy"] == "\u2013"
    value = RIGHT["metrics"]["accuracy"]["value"]
    assert frame.loc["right", "accuracy"].startswith(f"{value:.2f} [")
    assert frame.equals(table({"ways": WAYS, "right": RIGHT})[list(frame.columns)])


def test_a_figure_leaves_it_out_too():
    """A metric of none gets no Axes; a model without one keeps its row, and nothing is drawn there."""
    axes = plots.intervals({"ways": WAYS, "right": RIGHT}, NAMES)
    assert [ax.get_title() for ax in axes] == ["ways of thinking", "accuracy", "compliance"]
    assert [text.get_text() for text in axes[0].get_yticklabels()] == ["ways", "right"]
    rows = [ax.containers[0].lines[0].get_ydata().tolist() for ax in axes]
    assert rows == [[0], [1], [0, 1]]


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        (["compliance", "acuracy"], "unknown metric 'acuracy', did you mean 'accuracy'?"),
        (["way of thinking"], "unknown metric 'way of thinking', did you mean 'ways of thinking'?"),
        (["compliance", "pas@2"], "unknown metric 'pas@2', did you mean 'pass@2'?"),
        (["rouge1", "rougeL"], "none of rouge1, rougeL: these have compliance, cut off, "),
    ],
)
def test_a_misspelt_metric_is_refused_with_the_nearest(metrics, words):
    """And it is said when nothing would be left."""
    for shown in (table, lambda summaries, *names: plots.intervals(summaries, names)):
        with pytest.raises(ValueError, match=re.escape(words)):
            shown({"before": RIGHT}, *metrics)


def test_every_metric_of_a_summary_is_known():
    """Else asking for it would be an error where no model has it."""
    every = evaluate(SAMPLES, ["7", "9"], str.strip, training=["3 + 4"], text_scores=True)
    nothing = {"before": {"metrics": {"mine": every["metrics"]["accuracy"]}}}
    for metric in every["metrics"] | every["values"]:
        assert list(table(nothing, metric, "mine")) == ["mine"]
