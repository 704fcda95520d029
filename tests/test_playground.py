"""The playground: real runs become points of its history; a button's run can be cancelled; hostile text stays text."""

import copy
import json
import random
import tempfile
import threading
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

import btsft_nb as bt

DIALS = {"threshold": 0.5, "beta": 0.5, "anchor": 1.0, "data": "tiny/teacher"}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onclick='x",
    "</td></table>&lt;b>",
    "<!--",
]


def within(seconds: float, true) -> bool:
    """Waits until something becomes true, on a machine that may be slow."""
    end = time.monotonic() + seconds
    while not (found := true()) and time.monotonic() < end:
        time.sleep(0.05)
    return found


def states() -> list:
    return [
        random.getstate(),
        [str(part) for part in np.random.get_state()],
        torch.get_rng_state().tolist(),
    ]


def scratch() -> set[str]:
    """The run folders there are now."""
    return {
        str(path)
        for path in Path(tempfile.gettempdir()).glob("btsft_*")
        if (path / "README.md").exists()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> bt.Playground:
    """A playground with the model before and after one run."""
    playground = bt.Playground(prompts=4, samples=4)
    playground.run(**DIALS)
    return playground


def test_a_run_is_a_point(made, capfd):
    """With dials, metrics, ways and samples; nothing is printed, and no random state or folder is changed."""
    playground, before = (
        bt.Playground(made.history[:1], prompts=4, samples=4),
        (states(), scratch()),
    )
    capfd.readouterr()
    point = playground.run(**DIALS)
    assert (states(), scratch()) == before
    assert [
        line
        for line in "".join(capfd.readouterr()).splitlines()
        if "is_gradient_checkpointing" not in line
    ] == []
    assert playground.history == [made.history[0], point]
    assert {name: made.history[0][name] for name in DIALS} == dict.fromkeys(DIALS)
    assert {name: point[name] for name in DIALS} == DIALS
    assert not playground.running and f"{point['seconds']:.1f} s" in playground.status
    assert sum(point["ways"].values()) == 16 and point["seconds"] > 0
    again = made.history[1]  # the same dials and seed
    assert {**point, "seconds": 0} == {**again, "seconds": 0}
    assert point["samples"] != made.history[0]["samples"]


def test_a_model_that_writes_no_thought_is_a_point_too(monkeypatch):
    """At 0 unique thoughts; what the model writes is cut down to its answers."""
    playground, draw = bt.Playground(prompts=2, samples=2), bt.playground.sample

    def untagged(*args, **options):
        return [record | {"text": "7", "prefilled": False} for record in draw(*args, **options)]

    monkeypatch.setattr(bt.playground, "sample", untagged)
    point = playground.run(**DIALS)
    assert point["metrics"]["unique thoughts"] == {"value": 0, "low": 0, "high": 0, "n": 0}
    assert point["metrics"]["compliance"]["value"] == 0 and len(playground.history) == 2
    assert bt.points.to_html(playground.history).count("0.00 [0.00, 0.00]") >= 4


def test_the_metrics_are_those_of_the_samples(made):
    """Of three problems and three samples each, all are kept, and `evaluate` says the same of them."""
    point = bt.Playground(made.history[:1], prompts=3, samples=3, seed=1).run(
        0.0, 0.0, 0.0, "tiny/messy"
    )
    rows = bt.load_rows("tiny/test")[:3]
    assert [sample["question"] for sample in point["samples"]] == [
        row["messages"][0]["content"] for row in rows for _ in range(3)
    ]
    records = [
        {
            "prompt": i // 3,
            "sample": i % 3,
            "text": s["text"],
            "prefilled": False,
            "finished": s["problem"] != "cut off",
        }
        for i, s in enumerate(point["samples"])
    ]
    summary = bt.evaluate(records, [row["answer"] for row in rows], bt.tiny.way_of)
    assert (summary["metrics"], summary["ways"]) == (point["metrics"], point["ways"])
    right = np.mean([sample["correct"] for sample in point["samples"]])
    fits = np.mean([sample["problem"] is None for sample in point["samples"]])
    assert point["metrics"]["accuracy"]["value"] == pytest.approx(right)
    assert point["metrics"]["compliance"]["value"] == pytest.approx(fits)


def test_a_run_of_the_button_is_cancelled_and_the_next_one_works(made):
    """In a thread of its own, while training: history and random states stay; a second run meanwhile is refused."""
    playground, threads = (
        bt.Playground(made.history, prompts=2, samples=2),
        threading.active_count(),
    )
    before, start = states(), {"do": "run", **DIALS}
    playground._handle_custom_msg(start, [])
    assert within(120, lambda: playground.status.startswith("Training"))
    with pytest.raises(RuntimeError, match="a run is under way"):
        playground.run()
    assert 0 < playground.progress < 0.75 and playground.running
    playground._handle_custom_msg({"do": "cancel"}, [])
    assert within(60, lambda: not playground.running) and "Cancelled" in playground.status
    assert within(10, lambda: threading.active_count() <= threads)
    assert playground.history == made.history and states() == before
    playground._handle_custom_msg(start, [])
    assert within(120, lambda: len(playground.history) == 3) and within(
        10, lambda: not playground.running
    )
    assert playground.history[2]["data"] == "tiny/teacher"


@pytest.mark.parametrize(
    ("dials", "named"),
    [
        ({"threshold": 2}, "threshold=2"),
        ({"beta": "x"}, "beta='x'"),
        ({"data": "mine"}, "data='mine'"),
    ],
)
def test_a_wrong_dial_is_named_in_the_error_and_the_status(made, dials, named):
    playground = bt.Playground(made.history)
    with pytest.raises(ValueError, match=named):
        playground.run(**dials)
    assert playground.status.startswith(f"ValueError: {named}") and not playground.running


def test_a_history_is_kept_as_json(made):
    """And shown again: the same points, the same page."""
    kept = bt.Playground(json.loads(json.dumps(made.history)))
    assert kept.history == made.history
    assert kept._repr_mimebundle_()[0]["text/html"] == made._repr_mimebundle_()[0]["text/html"]


def broken(change):
    def apply(history):
        change(history[1])
        return history

    return apply


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda h: {"a": 1}, "history is {'a': 1}: list wanted"),
        (lambda h: [*h, 3], r"history\[2\] is 3: dict wanted"),
        (broken(lambda p: p.pop("beta")), r"history\[1\] lacks 'beta'"),
        (broken(lambda p: p.update(threshold="0.5")), r"history\[1\]\['threshold'\] is '0.5'"),
        (broken(lambda p: p.update(seconds=True)), r"history\[1\]\['seconds'\] is True"),
        (
            broken(lambda p: p["metrics"].pop("accuracy")),
            r"history\[1\]\['metrics'\] lacks 'accuracy'",
        ),
        (
            broken(lambda p: p["metrics"]["pass@4"].update(low=float("nan"))),
            r"\['metrics'\]\['pass@4'\]\['low'\] is nan",
        ),
        (
            broken(lambda p: p["ways"].update(count="9")),
            r"history\[1\]\['ways'\]\['count'\] is '9': int wanted",
        ),
        (
            broken(lambda p: p["samples"][2].update(text=None)),
            r"history\[1\]\['samples'\]\[2\]\['text'\] is None",
        ),
    ],
)
def test_a_malformed_history_is_refused_by_point_and_key(made, change, named):
    """When it is given, and when it is set."""
    history = change(copy.deepcopy(made.history))
    with pytest.raises(ValueError, match=named):
        bt.Playground(history)
    playground = bt.Playground(made.history)
    with pytest.raises(ValueError, match=named):
        playground.history = history
    assert playground.history == made.history


@pytest.mark.parametrize(
    "wrong", [{"prompts": 0}, {"prompts": 201}, {"samples": True}, {"samples": 1.5}]
)
def test_a_wrong_size_is_named(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        bt.Playground(**wrong)


class Page(HTMLParser):
    """The tags, attributes and words of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.tags, self.attributes, self.words = set(), set(), ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data):
        self.words += data

    def handle_comment(self, data):
        self.tags.add("comment")

    handle_decl = handle_pi = unknown_decl = handle_comment


def test_both_views_stand_side_by_side(made):
    """The widget where one can run, and a static table in which hostile text is text, with no script and no sheet."""
    assert bt.Playground()._repr_mimebundle_()[0]["text/html"] == "Playground: no points yet."
    history = copy.deepcopy(made.history)
    for text, sample in zip(HOSTILE, history[1]["samples"], strict=False):
        sample |= {"text": text, "question": text}
    history[1]["data"] = HOSTILE[0]
    data, _ = bt.Playground(history)._repr_mimebundle_()
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"]
    page = Page(data["text/html"])
    assert page.tags == {"table", "tr", "td", "details", "summary", "code"} and page.attributes == {
        "style"
    }
    assert all(page.words.count(text) >= 2 for text in HOSTILE)
    for point in history:
        assert (
            "{value:.2f} [{low:.2f}, {high:.2f}]".format(**point["metrics"]["unique thoughts"])
            in page.words
        )
