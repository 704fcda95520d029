"""The page of a comparison: in a real browser, from disk, with hostile text everywhere, and under 2 MB."""

import json
import re
from pathlib import Path

import pytest
from browser import assert_quiet, screenshot
from payloads import PAYLOADS

from btsft_nb import Comparison, evaluate
from btsft_nb.evaluation.page import page as page_of
from btsft_nb.text import visible

LIMIT = 2_000_000
SETTINGS = {
    "test": "tiny/test", "prompts": 2, "n": 2, "temperature": 1.0, "max_new_tokens": 64, "batch_size": 8, "seed": 0,
    "answer": "auto", "date": "2026-01-01T00:00:00+00:00", "versions": {"torch": "2.0"},
}  # fmt: skip
THINK = "<think>{}</think>{}"


def record(
    prompt: int, sample: int, said: str, question: str = "How many?", finished: bool = True
) -> dict:
    kept = {
        "prompt": prompt,
        "sample": sample,
        "question": question,
        "text": said,
        "finished": finished,
    }
    return kept | {"prefilled": False, "tokens": 9}


def made(
    samples: dict[str, list[dict]], references=None, configs=None, way_of=None, **settings
) -> str:
    """The page of these samples; those of models with equal ones are measured once."""
    summaries = {}
    for name, records in samples.items():
        same = [other for other in summaries if samples[other] is records]
        summary = summaries[same[0]] if same else evaluate(records, references, way_of)
        summaries[name] = summary
    first = next(iter(samples.values()))
    n_prompts = len({r["prompt"] for r in first})
    told = SETTINGS | {"prompts": n_prompts, "n": len(first) // n_prompts} | settings
    configs = configs or {name: {} for name in samples}
    return page_of(Comparison(summaries, configs, samples, references, told, Path()))


SAMPLES = {
    "before": [
        record(0, 0, THINK.format("Two and two.", "4")), record(0, 1, THINK.format("Two and two.", "4")),
        record(1, 0, THINK.format("Count: 1, 2, 3.", "3")), record(1, 1, THINK.format("It is 3.", "3")),
    ],
    "after": [
        record(0, 0, THINK.format("Two and three.", "4")), record(0, 1, THINK.format("Two.", "4")),
        record(1, 0, "<think>It is 5.", finished=False), record(1, 1, THINK.format("It is 3.", "3")),
    ],
}  # fmt: skip
CONFIGS = {
    "before": {
        "data": "a.jsonl",
        "threshold": 0.0,
        "seed": 1,
        "output_dir": "x",
        "hub_token": "<HUB_TOKEN>",
    },
    "after": {
        "data": "a.jsonl",
        "threshold": 0.5,
        "seed": 1,
        "output_dir": "y",
        "lr": 1,
        "hub_token": None,
    },
}


@pytest.fixture
def show(page, tmp_path):
    """`show(page of a comparison)` opens it from disk."""

    def opened(content: str):
        (tmp_path / "index.html").write_text(content, encoding="utf-8")
        page.goto(f"file://{tmp_path / 'index.html'}")
        page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        return page

    return opened


def cells(page, heading: str) -> dict[str, list[str]]:
    """The rows of a section's table by their first cell, with what can be read in them."""
    rows = (
        page.locator("section", has=page.get_by_role("heading", name=heading, exact=True))
        .locator("tr")
        .all()
    )
    found = [
        [" ".join(cell.split()) for cell in row.locator("th, td").all_inner_texts()] for row in rows
    ]
    return {first: rest for first, *rest in found}


def column(page, prompt: int, model: int):
    return page.locator("details").nth(prompt).locator(".models > div").nth(model)


def test_a_page_says_what_was_measured(show):
    """Values, intervals, differences in words, format, configuration; and it is quiet."""
    opened = show(made(SAMPLES, ["4", "3"], CONFIGS, lambda thought: thought[:2] or None))
    assert cells(opened, "Measured")[""] == ["before", "after"]
    assert cells(opened, "Measured")["accuracy"] == ["1.00 [1.00, 1.00]", "0.75 [0.50, 1.00]"]
    differences = cells(opened, "Differences")
    assert differences["accuracy"] == ["\u22120.250 [\u22120.500, +0.000]"]
    assert differences["unique thoughts"] == ["+0.000 [\u22120.500, +0.500]"]
    assert cells(opened, "What was wrong with the format")["cut off"] == [
        "0 0.0% of 4",
        "1 25.0% of 4",
    ]
    configuration = cells(opened, "The configuration that differs")
    assert configuration == {
        "": ["before", "after"], "data (equal)": ["\"a.jsonl\"", "\"a.jsonl\""], "threshold": ["0.0", "0.5"],
        "lr": ["\u2013", "1"],
    }  # fmt: skip
    assert_quiet(opened)


def test_the_configuration_shows_settings_of_adapters_where_two_differ(show):
    """Not what a run without an adapter has not, nor what is equal in all; that is counted."""
    configs = {
        "before": {"adapter.r": 16, "adapter.bias": "none", "output_dir": "a", "qlora": True},
        "after": {"adapter.r": 8, "adapter.bias": "none", "output_dir": "b", "qlora": True},
    }
    full = {**SAMPLES, "full": SAMPLES["after"]}
    for runs, rank in ((configs, "adapter.r"), (configs | {"after": configs["before"]}, None)):
        opened = show(made(full, None, runs | {"full": {"output_dir": "c"}}))
        found = cells(opened, "The configuration that differs")
        assert list(found) == ["", "qlora", *([rank] if rank else [])]
        assert f"The {1 if rank else 2} other settings are equal" in opened.inner_text("body")


def test_what_is_surely_higher_or_lower_says_so(show):
    """In words, and only where the interval leaves out 0."""
    right = [record(i, 0, THINK.format("a", "1")) for i in range(20)]
    wrong = [record(i, 0, THINK.format("a", "2" if i < 18 else "1")) for i in range(20)]
    opened = show(made({"a": right, "b": wrong, "c": right}, ["1"] * 20))
    differences = cells(opened, "Differences")
    assert differences["accuracy"][0].startswith("\u22120.900 lower [\u22121.000, ")
    assert differences["accuracy"][1] == "+0.000 [+0.000, +0.000]"
    opened = show(made({"a": wrong, "b": right}, ["1"] * 20))
    assert cells(opened, "Differences")["accuracy"][0].startswith("+0.900 higher [+")


def test_samples_stand_side_by_side(show):
    """Equal ones once, thought apart from answer where the format allows, right or wrong."""
    opened = show(made(SAMPLES, ["4", "3"]))
    (same,) = column(opened, 0, 0).locator(".same").all()
    assert "\u00d72 \u2713 right" in same.inner_text() and "sample 0, 1" in same.inner_text()
    assert same.locator(".part").all_inner_texts() == ["thought Two and two.", "answer 4"]
    broken, again = column(opened, 1, 1).locator(".same").all()
    assert "\u2717 wrong, format: cut off" in broken.inner_text()
    assert broken.locator(".part").all_inner_texts() == ["text <think>It is 5."]
    assert again.locator(".part").all_inner_texts() == ["thought It is 3.", "answer 3"]
    assert "1 of 2 right, 2 different texts" in opened.locator("summary").nth(1).inner_text()


def test_without_references_nothing_is_right_or_wrong(show):
    opened = show(made(SAMPLES))
    assert "right" not in opened.locator(".models").first.inner_text()
    assert "accuracy" not in cells(opened, "Measured")
    assert_quiet(opened)


HOSTILE = list(PAYLOADS.values())
HOSTILE.insert(15, "half a character: \ud83d")  # what no name of a file can be


@pytest.mark.parametrize("start", range(0, len(HOSTILE), 20))
def test_hostile_text_stays_text(show, start):
    """As names, questions, thoughts, answers, references, ways, configuration and settings; all can be read."""
    some = HOSTILE[start : start + 20]
    said = [record(i, 0, THINK.format(p, p), p) for i, p in enumerate(some)]
    names = {
        f"{i} {p}": said if i else [r | {"text": p} for r in said] for i, p in enumerate(some[:8])
    }
    configs = {
        name: {"data": p, p: p, "threshold": [p]} for name, p in zip(names, some, strict=False)
    }
    p = some[0]
    told = {"test": p, "versions": {p: p}, "date": p}
    content = made(
        names,
        [f"{p} x" for p in some],
        configs,
        lambda thought: thought or None,
        **told,
        answer="exact",
    )
    assert len(content.encode()) < LIMIT
    opened = show(content)
    counts = opened.evaluate("""() => ["script, iframe, object, embed, form, base, link, svg, math, input, video",
        "style", "h1", "title", "[onerror], [onload], [onfocus], [ontoggle], [onmouseover]", "a",
        "img"].map(kind => document.querySelectorAll(kind).length)""")
    assert counts == [0, 1, 1, 1, 0, 0, 0]
    questions = opened.locator("summary > bdi").evaluate_all("all => all.map(e => e.textContent)")
    assert questions == [visible(p, 600, "\n") for p in some]
    assert_quiet(opened)


def test_a_policy_forbids_all_requests_and_scripts(show):
    """So that even what escaped escaping would do nothing: a script and a picture are put into the page."""
    content = made(SAMPLES).replace(
        "</body>", PAYLOADS["script"] + PAYLOADS["img onerror"] + "</body>"
    )
    opened = show(content)
    opened.wait_for_timeout(300)
    assert opened.evaluate("window.PWNED") is None
    for what in (
        "Executing inline script violates",
        "Loading the image 'http://127.0.0.1:9/x.png' violates",
    ):
        assert any(error.startswith(what) for error in opened.heard.errors), opened.heard.errors


@pytest.mark.parametrize(
    ("width", "scheme"), [(400, "light"), (400, "dark"), (1280, "light"), (1280, "dark")]
)
def test_it_can_be_read_on_a_phone_and_in_the_dark(show, page, width, scheme):
    """Nothing but tables is wider than the window; text stands out from its ground by 4.5 to 1."""
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    opened = show(
        made(
            {**SAMPLES, "a longer name": SAMPLES["after"]},
            ["4", "3"],
            CONFIGS | {"c": {"lr": "x" * 200}},
        )
    )
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    contrast = opened.evaluate("""() => {
      const light = c => c.map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0)
      const parts = c => c.match(/[\\d.]+/g).map(Number)
      const ground = e => {
        const [r, g, b, a = 1] = parts(getComputedStyle(e).backgroundColor)
        if (a === 1) return [r, g, b]
        const under = e.parentElement ? ground(e.parentElement) : [255, 255, 255]
        return [r, g, b].map((v, i) => v * a + under[i] * (1 - a))
      }
      return [...document.querySelectorAll("body *:not(script):not(style)")].filter(
        e => [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())
      ).map(e => {
        const [a, b] = [light(parts(getComputedStyle(e).color).slice(0, 3)), light(ground(e))].sort((x, y) => y - x)
        return (a + .05) / (b + .05)
      })
    }""")
    assert len(contrast) > 50 and min(contrast) >= 4.5
    shade = opened.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", shade))) < 200) == (scheme == "dark")
    screenshot(page, f"comparison-{width}-{scheme}")


def long(i: int) -> str:
    return "\"'&<\u6f22 " * 1_000 + str(i)


@pytest.mark.parametrize(("prompts", "n", "models"), [(1, 2, 2), (21, 9, 6)])
def test_a_page_is_under_2_mb_whatever_the_texts(prompts, n, models):
    """Long texts are cut, prompts and texts left out; each says how much."""
    said = [
        record(i, k, long(n * i + k)[: 3_000 * (k + 1)], long(0))
        for i in range(prompts)
        for k in range(n)
    ]
    html = made({f"model {m}": said for m in range(models)}, ["1"] * prompts)
    assert LIMIT / 50 < len(html.encode()) < LIMIT
    shown = html.count("<details")
    assert shown == min(prompts, 20) and f"{shown:,} of {prompts:,} prompts" in html
    assert "more characters</small>" in html
    assert (f"and {n - 8:,} more texts" in html) == (n > 8)


def test_what_cannot_be_seen_or_written_is_shown():
    """Control characters, halves of characters, and what turns the direction of text; line ends stay in samples."""
    content = made(
        {"a": [record(0, 0, "\x00\x1b[31m\x7f\u202e\nb")]}, test="\udfff", answer="exact"
    )
    shown = "⟨U+0000⟩⟨U+001B⟩[31m⟨U+007F⟩⟨U+202E⟩\nb"
    assert shown in content.encode().decode() and "\u27e8U+DFFF\u27e9" in content
    assert json.loads(json.dumps(content)) == content


def test_answers_that_could_not_be_compared_are_counted():
    content = made({"a": [record(0, 0, THINK.format("a", "I do not know"))]}, ["7"])
    assert "1 of 1 answers could not be compared with the reference" in content
