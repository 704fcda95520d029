"""bt.Dials: real runs become points, with the notebook's own settings; it is cancelled, and lives in JupyterLab."""

import json
import threading
import time

import pytest
from browser import assert_quiet, open_notebook, screenshot
from payloads import PAYLOADS

import btsft_nb as bt
from btsft_nb.views.live import dials_chart, still_chart

SHORT = bt.tiny.DEMO | {"test_prompts": 4, "samples": 4, "max_steps": 4}


@pytest.fixture(scope="module")
def panel() -> bt.Dials:
    """A panel after two runs: plain SFT, and both dials."""
    panel = bt.Dials(bt.read_settings(**SHORT))
    panel.run(threshold=0, anchor=0, beta=0)
    panel.run(threshold=0.5, anchor=1, beta=0.5)
    return panel


def test_a_run_is_a_point_and_the_first_brings_the_model_before(panel):
    labels = [point["label"] for point in panel.points]
    assert labels == [
        "0: before",
        "1: threshold 0, anchor 0, beta 0",
        "2: threshold 0.5, anchor 1, beta 0.5",
    ]
    for point in panel.points:
        assert len(point["samples"]) == 16
        assert {"unique thoughts", "accuracy", "compliance"} <= set(point["summary"]["metrics"])


def test_the_model_before_is_that_of_the_same_draws(panel):
    """What the point says is what `sample` draws from a model that was never trained."""
    model, tokenizer = bt.load_model("tiny", qlora=True)
    prompts = bt.load_rows("tiny/test")[:4]
    texts = [
        s["text"]
        for s in bt.sample(model, tokenizer, prompts, 4, max_new_tokens=96, batch_size=400)
    ]
    assert texts == [s["text"] for s in panel.points[0]["samples"]]


def test_a_point_is_the_run_of_these_settings(panel, tmp_path):
    """The panel's training is `finetune` with the same settings: the saved run gives the same samples."""
    dials = panel.points[2]["dials"]
    trainer = bt.finetune(bt.read_settings(output_dir=str(tmp_path / "run"), **SHORT | dials))
    prompts = bt.load_rows("tiny/test")[:4]
    tokenizer = trainer.processing_class
    samples = bt.sample(trainer.model, tokenizer, prompts, 4, max_new_tokens=96, batch_size=400)
    assert [s["text"] for s in samples] == [s["text"] for s in panel.points[2]["samples"]]


def test_it_trains_the_model_and_the_data_of_the_notebook(tmp_path, capsys):
    """Rows, prompts and method are the reader's; without adapters there is no model before to measure."""
    rows = bt.load_rows("tiny/teacher")[:32]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mine = {
        "data": str(tmp_path / "mine.jsonl"),
        "test": str(tmp_path / "mine.jsonl"),
        "test_prompts": 3,
    }
    changes = mine | {"method": "full", "threshold": 0.0, "anchor": 0.0, "max_steps": 2}
    panel = bt.Dials(bt.read_settings(**SHORT | changes))
    assert panel.values == {"threshold": 0.0, "anchor": 0.0, "beta": 0.5}
    panel.children[2].value = 0.25  # a slider is the value of the next run
    point = panel.run()
    assert point["dials"] == panel.values
    assert [p["label"] for p in panel.points] == ["0: threshold 0, anchor 0, beta 0.25"]
    assert capsys.readouterr().out == ""  # which would stand in some other cell
    questions = {row["messages"][0]["content"] for row in rows[:3]}
    assert {sample["question"] for sample in point["samples"]} == questions


def test_cancel_ends_a_run_without_a_point():
    panel = bt.Dials(bt.read_settings(**SHORT | {"max_steps": 1000}))
    thread = threading.Thread(target=panel.run)
    thread.start()
    while panel._progress.value < 0.1:
        time.sleep(0.05)
    panel._cancel.click()
    thread.join(60)
    assert not thread.is_alive() and panel.points == []
    assert panel._status.value == "Cancelled: no point was added." and not panel._run.disabled


def test_what_cannot_run_is_said_in_the_panel():
    with pytest.raises(ValueError, match="test=ROWS"):
        bt.Dials(bt.read_settings(model="tiny", data="tiny/teacher"))
    panel = bt.Dials(bt.read_settings(**SHORT))
    with pytest.raises(ValueError, match="threshold"):
        panel.run(threshold=7)
    assert "threshold" in panel._status.value and not panel._run.disabled


def test_the_chart_leaves_out_what_a_model_has_not(panel):
    """And stands still as HTML beside the living widget."""
    share = {"value": 0.5, "low": 0.4, "high": 0.6}
    metrics = {"unique thoughts": share, "compliance": share}  # no answers to tell right ones
    bare = {"label": "bare", "summary": {"metrics": metrics}}
    assert dials_chart([bare]).startswith(b"\x89PNG") and dials_chart([]).startswith(b"\x89PNG")
    data = panel._repr_mimebundle_()
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == panel.model_id
    assert "threshold 0.5, anchor 1, beta 0.5" in data["text/html"]
    for text in list(PAYLOADS.values())[::8]:
        html = still_chart([bare | {"label": text}])
        assert html.count("<") == 1 and html.count('"') == 4


def test_hostile_samples_stay_text(panel):
    samples = [{"question": text, "text": text} for text in PAYLOADS.values()]
    panel.points[0]["samples"] = samples[:12]
    panel._choice.value = 1
    panel._choice.value = 0
    assert panel._texts.value.count("<") == 2 * 12 + 11  # a pair of tags each, a line between two


CELLS = [
    "import btsft_nb as bt",
    f"settings = bt.read_settings(**{SHORT!r})\npanel = bt.Dials(settings)\npanel",
    "panel",
]


def test_the_button_trains_in_jupyterlab(page, lab):
    """A run is cancelled and adds nothing; the next one adds its points, and both views of the panel show them."""
    open_notebook(page, lab, CELLS, theme="dark")
    one, other = (page.locator(".jp-OutputArea-output:has(button)").nth(i) for i in range(2))
    one.get_by_role("button", name="Run").click()
    one.get_by_role("button", name="Cancel").click()
    one.get_by_text("Cancelled: no point was added.").wait_for(timeout=120_000)
    one.get_by_role("button", name="Run").click()
    other.get_by_text("Done.").wait_for(timeout=300_000)
    for view in (one, other):
        texts = [text.replace("\u00a0", " ") for text in view.locator("option").all_inner_texts()]
        assert texts == [
            "0: before",
            "1: threshold 0.5, anchor 1, beta 0.5",
        ]
        assert view.locator("img").evaluate("image => image.naturalWidth") > 500
        assert "<think>" in view.inner_text()
    screenshot(page, "dials-lab-dark")
    assert_quiet(page)
