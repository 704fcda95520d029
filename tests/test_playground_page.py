"""The playground's page in a real browser, on a model that only remembers: what is drawn, pressed, shown and sent."""

import json
from pathlib import Path

import pytest
from browser import assert_quiet, open_notebook, screenshot
from payloads import PAYLOADS

import btsft_nb

SCRIPT = (Path(btsft_nb.__file__).parent / "playground.js").read_text(encoding="utf-8")
MODEL = """
const state = JSON.parse(STATE), listeners = {};
window.sent = [], window.saved = {}, window.dirty = {};
window.emit = (name) => (listeners["change:" + name] || []).forEach((listener) => listener());
window.put = (name, value) => { state[name] = value; emit(name); };
window.listening = () => Object.values(listeners).flat().length;
const model = {
  get: (name) => state[name],
  set: (name, value) => { dirty[name] = value; put(name, value); },
  save_changes: () => Object.assign(saved, dirty),
  send: (content) => sent.push(content),
  on: (name, listener) => (listeners[name] ||= []).push(listener),
  off: (name, listener) => (listeners[name] = listeners[name].filter((other) => other !== listener)),
};
const module = await import("data:text/javascript," + encodeURIComponent(SCRIPT));
window.clean = module.default.render({ model, el: document.querySelector("main") });
window.ready = true;
"""
DIALS = {"threshold": 0.5, "beta": 0.5, "anchor": 1.0, "data": "tiny/teacher"}


def point(
    number: int, text: str = "<think>Count: 1, 2.</think>\n\nThe answer is 2.", **changes
) -> dict:
    """A point with figures of its own."""
    values = {
        "unique thoughts": 0.2 + 0.25 * number,
        "accuracy": 0.9 - 0.1 * number,
        "compliance": 0.5 + 0.1 * number,
    }
    metrics = {name: {"value": v, "low": v - 0.04, "high": v + 0.03} for name, v in values.items()}
    dials = DIALS if number else dict.fromkeys(DIALS)
    samples = [
        {
            "question": f"1 + 1 = ? ({number})",
            "text": text,
            "correct": correct,
            "problem": None if correct else "cut off",
        }
        for correct in (True, False)
    ]
    return {
        **dials,
        "seconds": 7.5,
        "metrics": metrics,
        "ways": {"count": 2},
        "samples": samples,
        **changes,
    }


@pytest.fixture
def opened(page):
    """Opens a page on a history; afterwards nothing may have been asked for, alerted or complained of."""

    def open_page(
        history: list[dict],
        *,
        colors: str = "background:#fff;color:#111",
        width: int = 900,
        **state,
    ):
        state = {
            **DIALS,
            "running": False,
            "progress": 0,
            "status": "",
            "history": history,
            **state,
        }
        script = MODEL
        for name, content in (("STATE", json.dumps(state)), ("SCRIPT", SCRIPT)):
            script = script.replace(name, json.dumps(content).replace("<", "\\u003c"))
        page.goto("about:blank")
        page.set_viewport_size({"width": width, "height": 1000})
        page.set_content(
            f'<body style="{colors}"><main></main><script type="module">{script}</script>'
        )
        page.wait_for_function("window.ready")
        return page

    yield open_page
    assert_quiet(page)


def inside(page, axis: str) -> list[float]:
    """The places of accuracy's and compliance's marks along an axis, in units of the data, read off the tick labels."""
    return page.evaluate(
        """(axis) => {
          const svg = document.querySelector("main > div").shadowRoot.querySelector("svg");
          const [size, anchor] = axis === "x" ? ["width", "middle"] : ["height", "end"];
          const middle = (node) => node.getBoundingClientRect()[axis] + node.getBoundingClientRect()[size] / 2;
          const texts = [...svg.querySelectorAll(`text[text-anchor=${anchor}]`)];
          const tick = (text) => texts.find((node) => node.textContent === text);
          const [zero, one] = [middle(tick("0.0")), middle(tick("1.0"))];
          return [...svg.querySelectorAll(".point .mark")].map((node) => (middle(node) - zero) / (one - zero));
        }""",
        axis,
    )


def test_points_stand_where_their_figures_are(opened):
    """Accuracy's filled circle and compliance's open square, across by unique thoughts, in a wide and a narrow cell."""
    history = [point(i) for i in range(3)]
    for width in (900, 340):
        page = opened(history, width=width)
        up = [p["metrics"][name]["value"] for p in history for name in ("accuracy", "compliance")]
        assert inside(page, "y") == pytest.approx(up, abs=0.01)
        across = [p["metrics"]["unique thoughts"]["value"] for p in history for _ in range(2)]
        assert inside(page, "x") == pytest.approx(across, abs=0.01)
        shapes = page.locator("svg .point .mark").evaluate_all(
            "marks => marks.map(m => [m.tagName, m.getAttribute('fill') === 'none'])"
        )
        assert shapes == [["circle", False], ["rect", True]] * 3
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        row = "1 tiny/teacher 0.5 0.5 1 0.45 [0.41, 0.48] 0.80 [0.76, 0.83] 0.60 [0.56, 0.63] 7.5"
        assert page.locator("tr").nth(2).inner_text().split() == row.split()


def test_points_are_chosen_by_keyboard_and_table(opened):
    """Enter keeps a point, two stand side by side; the keys stay in the page's own root."""
    page = opened([point(i) for i in range(3)])
    page.evaluate(
        "window.keys = []; document.addEventListener('keydown', (event) => keys.push(event.key))"
    )
    cards = page.locator("section")
    assert [text.splitlines()[0] for text in cards.all_inner_texts()] == [
        "Point 0: before fine-tuning", "Point 2: tiny/teacher, threshold 0.5, beta 0.5, anchor 1",
    ]  # fmt: skip
    page.locator("select").focus()
    for _ in range(3):  # Cancel cannot be pressed now: Run, point 0, point 1
        page.keyboard.press("Tab")
    assert "1 + 1 = ? (1)" in cards.nth(1).inner_text()  # looked at
    page.keyboard.press("Enter")
    page.locator("select").focus()
    assert [card[:8] for card in cards.all_inner_texts()] == ["Point 2:", "Point 1:"]
    assert page.evaluate("keys") == []
    for box in page.get_by_role("checkbox").all():
        box.set_checked(False)
    assert cards.count() == 0
    page.get_by_role("checkbox").nth(1).check()
    assert "Count: 1, 2." in cards.inner_text() and "format: cut off" in cards.inner_text()
    assert cards.locator(".sample b").all_inner_texts() == ["right", "wrong"]
    assert cards.locator("bdi.thought").first.inner_text() == "<think>Count: 1, 2.</think>"


def test_dials_and_buttons_reach_the_model(opened):
    """A slider by its keys, the data, Run with what they say, Cancel while it runs; progress and status come back."""
    page = opened([])
    assert "No points yet" in page.locator(".wide").inner_text()
    page.get_by_role("slider").first.focus()
    page.keyboard.press("ArrowRight")
    page.locator("select").select_option("tiny/messy")
    assert page.evaluate("saved") == {"threshold": 0.55, "data": "tiny/messy"}
    assert page.locator(".value").first.inner_text() == "0.55"
    run, cancel = page.get_by_role("button", name="Run"), page.get_by_role("button", name="Cancel")
    assert cancel.is_disabled()
    run.press("Enter")
    assert page.evaluate("sent") == [
        {"do": "run", "threshold": 0.55, "beta": 0.5, "anchor": 1, "data": "tiny/messy"}
    ]
    page.evaluate("put('running', true), put('progress', 0.25), put('status', '<b>Training</b>')")
    assert run.is_disabled() and page.get_by_role("status").inner_text() == "<b>Training</b>"
    assert page.get_by_role("progressbar").evaluate("bar => bar.value") == 0.25
    page.keyboard.press("Enter")  # the focus went to the button that can be pressed
    assert page.evaluate("sent").pop() == {"do": "cancel"}
    page.evaluate(
        "history => { put('running', false); put('history', history); }", [point(0), point(1)]
    )
    assert page.locator("svg .point").count() == 2 and page.locator("section").count() == 2
    page.evaluate("clean()")
    assert page.evaluate("listening()") == 0


def test_hostile_text_stays_text(opened):
    """As data, question, text, problem, way and status: shown as given; the fixture sees that nothing came of it."""
    for text in filter(str.strip, PAYLOADS.values()):
        sample = {
            "question": text,
            "text": f"<think>{text}</think>{text}",
            "correct": False,
            "problem": text,
        }
        page = opened(
            [point(0), point(1, data=text, ways={text: 3}, samples=[sample])], status=text
        )
        page.get_by_role("button", name="Point 1").focus()
        shown = page.locator("section").nth(1).evaluate("card => card.textContent")
        assert shown.count(text) == 6 - ("</think>" in text)  # a thought ends there
        assert page.get_by_role("status").evaluate("node => node.textContent") == text
        assert page.locator("section script, section img, section iframe, section svg").count() == 0


@pytest.mark.parametrize(
    ("colors", "scheme"),
    [("background:#111;color:#eee", "dark"), ("background:#fff;color:#111", "light")],
)
def test_controls_follow_the_page(opened, colors, scheme):
    """The form controls' scheme comes from the text colour that the page gives."""
    host = opened([point(0)], colors=colors).locator("main > div")
    assert host.evaluate("host => getComputedStyle(host).colorScheme") == scheme
    assert host.evaluate(
        "host => getComputedStyle(host.shadowRoot.querySelector('svg text')).fill"
    ) == host.evaluate("host => getComputedStyle(host).color")


CELLS = [
    "import btsft_nb as bt",
    "playground = bt.Playground(prompts=4, samples=2)\nplayground",
    "playground",
]


def test_the_button_trains_in_a_notebook(page, lab):
    """In JupyterLab: a run is cancelled and adds nothing; the next one adds its point, and both views show it."""
    open_notebook(page, lab, CELLS, theme="dark")
    one, other = (page.locator(".jp-OutputArea-output:has(select)").nth(i) for i in range(2))
    one.get_by_role("button", name="Run").click()
    one.get_by_role("button", name="Cancel").click()
    one.get_by_text("Cancelled: no point was added.").wait_for(timeout=120_000)
    assert one.locator("svg .point").count() == 0
    one.get_by_role("button", name="Run").click()
    other.get_by_text("Point 1 took").wait_for(timeout=300_000)
    assert one.locator("svg .point").count() == other.locator("svg .point").count() == 2
    screenshot(page, "playground-lab-dark")
    assert_quiet(page)


def test_the_button_trains_in_marimo(page, open_marimo):
    """Whose pages hear no plain thread."""
    open_marimo(page, ["import btsft_nb as bt\nbt.Playground(prompts=4, samples=2)"])
    page.get_by_role("button", name="Run").click(timeout=120_000)
    page.get_by_text("Point 1 took").wait_for(timeout=300_000)
    assert page.locator("svg .point").count() == 2
    screenshot(page, "playground-marimo")
