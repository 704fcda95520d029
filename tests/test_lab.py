"""The ground that browser tests stand on: a widget lives in each front end, and what goes wrong is noticed."""

import pytest
from browser import ROOT, assert_quiet, open_notebook, screenshot
from nbformat.v4 import new_code_cell, new_output
from payloads import PAYLOADS, SINK

COUNTER = '''
import anywidget, traitlets

class Counter(anywidget.AnyWidget):
    _esm = """export default { render({ model, el }) {
      const button = el.appendChild(document.createElement("button"))
      const show = () => { button.textContent = `clicked ${model.get("doubled")}` }
      button.onclick = () => { model.set("count", model.get("count") + 1); model.save_changes() }
      model.on("change:doubled", show)
      show()
    } }"""
    count = traitlets.Int(0).tag(sync=True)
    doubled = traitlets.Int(0).tag(sync=True)

    @traitlets.observe("count")
    def _(self, change):
        self.doubled = 2 * change["new"]
'''


@pytest.mark.parametrize(
    ("app", "theme"), [("lab", "light"), ("lab", "dark"), ("notebook", "dark")]
)
def test_a_widget_lives_and_reaches_python(page, lab, app, theme):
    """The browser counts, the kernel doubles, the browser shows it; and the kernel would import this checkout."""
    where = "import importlib.util; print(importlib.util.find_spec('btsft_nb').origin)"
    open_notebook(page, lab, [COUNTER, "Counter()", where], app=app, theme=theme)
    page.get_by_role("button", name="clicked 0").click()
    page.get_by_role("button", name="clicked 2").wait_for()
    page.get_by_text(str(ROOT / "btsft_nb" / "__init__.py")).wait_for()
    assert page.evaluate("document.body.dataset.jpThemeLight") == str(theme == "light").lower()
    assert screenshot(page, f"counter-{app}-{theme}").stat().st_size > 10_000
    assert_quiet(page)


def test_an_error_in_a_cell_is_raised(page, lab):
    with pytest.raises(pytest.fail.Exception, match="no such thing"):
        open_notebook(page, lab, ["raise ValueError('no such thing')"])


@pytest.mark.parametrize("trusted", [True, False])
def test_outputs_run_only_where_they_are_trusted(page, lab, trusted):
    """The same notebook, with and without the server's signature: so the test of untrusted outputs can fail."""
    html = f"<b>shown</b>{PAYLOADS['script']}{PAYLOADS['img onerror']}"
    cell = new_code_cell("1", outputs=[new_output("display_data", {"text/html": html})])
    open_notebook(page, lab, [cell], run=False, trusted=trusted)
    page.locator("b", has_text="shown").wait_for()
    page.wait_for_timeout(500)
    assert page.evaluate("window.PWNED") == (1 if trusted else None)


FRAMES = """texts => texts.forEach(text => {
  document.body.appendChild(document.createElement("iframe")).srcdoc = text
})"""
RAN = "frame => { try { return frame.PWNED } catch { return false } }"  # a frame that went elsewhere may not be read
LOUD = {
    "script": PAYLOADS["script"],
    "dialog": "<script>alert(1)</script>",
    "console error": "<script>console.error('x')</script>",
    "exception": "<script>throw Error('x')</script>",
    "promise": "<script>Promise.reject(Error('x'))</script>",
    "frame": PAYLOADS["iframe srcdoc"],
    "image": "<img src='https://example.org/x.png'>",
    "style": "<style>@import url('https://example.org/x.css')</style>",
    "websocket": "<script>new WebSocket('wss://example.org')</script>",
    "sink": f"<img src='{SINK}x.png'>",
    "fetch": "<script>fetch('https://example.org').catch(() => 0)</script>",
}


@pytest.mark.parametrize("html", LOUD.values(), ids=LOUD)
def test_what_goes_wrong_is_noticed(page, html):
    page.set_content(html, wait_until="commit")
    page.wait_for_timeout(300)
    with pytest.raises(AssertionError):
        assert_quiet(page)


def test_a_page_that_does_nothing_is_quiet(page):
    page.set_content(
        "<p>x</p><script>console.log('x')</script><img src='data:image/gif;base64,R0lGODlhAQABAAAAACw='>"
    )
    assert_quiet(page)


def test_payloads_are_dangerous(page):
    """Read as HTML, each in a frame of its own, many run or fetch at once: to show them quietly takes some care."""
    page.evaluate(FRAMES, list(PAYLOADS.values()))
    page.wait_for_function(f"Array.from(window).filter({RAN}).length >= 20")
    assert len(set(page.heard.strays)) >= 3


def test_a_widget_lives_in_marimo(page, open_marimo):
    open_marimo(page, [COUNTER, "Counter()"])
    page.get_by_role("button", name="clicked 0").click()
    page.get_by_role("button", name="clicked 2").wait_for()
    screenshot(page, "counter-marimo")
    assert_quiet(page)
