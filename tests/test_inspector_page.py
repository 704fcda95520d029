"""The inspector in a real browser: on a page without Python, in JupyterLab 4, Notebook 7 and marimo."""

import copy
import itertools
import json
import pickle
import re

import numpy as np
import pytest
from browser import assert_quiet, open_notebook, screenshot
from nbconvert import HTMLExporter
from nbformat.v4 import new_code_cell, new_notebook, new_output
from payloads import PAYLOADS

import btsft_nb as bt
from btsft_nb import BTSFTConfig, BTSFTTrainer, TokenInspector, prepare
from btsft_nb.views.inspector_data import VIEWS
from btsft_nb.views.static_view import static_view

WORDS = [
    "so",
    "12",
    "Let's",
    "check:",
    "wait\u2026",
    "no!",
    "7x8=56.",
    "\u65e5\u672c\u3002",
    "(e.g.",
    "two)",
]
WORDS += ["\U0001f389", "and\n\nthen", "\u00e9t\u00e9?"]
TURN = """([view, threshold, epoch, unit, beta]) => {
  const root = document.querySelector("[data-lm-suppress-shortcuts]").shadowRoot
  const put = (name, value) => {
    const input = root.querySelector(`[aria-label=${name}]`)
    input.value = value
    input.dispatchEvent(new Event("input"))
  }
  const numbers = root.querySelector("[type=checkbox]")
  numbers.checked = true
  numbers.dispatchEvent(new Event("change"))
  put("view", view), put("threshold", threshold), put("epoch", epoch), put("unit", unit), put("beta", beta)
  dispatchEvent(new Event("beforeprint")) // lays out all tokens
  return [...root.querySelectorAll(".t")].map(t => [t.classList.contains("blurred"), t.dataset.n, t.textContent])
}"""

BLURRED = "ts => ts.map(t => t.classList.contains('blurred'))"
UNITS = ("token", "word", "sentence", "thought")


def rows(n: int) -> list[dict]:
    """Talks with thoughts of words, sentences, line breaks and characters of several tokens."""
    rng, made = np.random.default_rng(0), []
    for i in range(n):
        thought, answer = (" ".join(rng.choice(WORDS, rng.integers(1, size))) for size in (60, 9))
        talk = [
            {"role": "user", "content": f"q{i}?"},
            {"role": "assistant", "content": f"<think>{thought}</think>\n\n{answer}"},
        ]
        made.append({"id": f"row {i}", "messages": talk})
    return made


def scored(example: dict, seed: int = 0) -> dict:
    """Of the shape that `score` gives, with numbers that the page has to show."""
    rng, n = np.random.default_rng(seed), len(example["input_ids"])
    log_probs = np.log(rng.uniform(0.001, 1, n))
    log_probs[0] = 0
    return {
        "log_probs": log_probs,
        "tags": rng.uniform(0, 1, (2, n)),
        "expected_reward": 0.25,
        "format_pull": rng.uniform(0, 0.2, n),
        "rank": rng.integers(1, 99, n),
        "top_ids": rng.integers(0, 300, (n, 5)),
        "top_log_probs": np.log(rng.uniform(0.01, 0.2, (n, 5))),
        "kl": rng.uniform(0, 3, n),
    }


@pytest.fixture
def show(page, tmp_path):
    """`show(inspector)` opens its page, once the script is through."""

    def opened(inspector: TokenInspector):
        inspector.to_html(tmp_path / "page.html")
        page.goto(f"file://{tmp_path / 'page.html'}")
        page.locator(".t").first.wait_for()
        return page

    return opened


@pytest.fixture(scope="module")
def examples(tiny_tokenizer):
    return prepare(rows(6), tiny_tokenizer)


@pytest.fixture(scope="module")
def scores(examples) -> list[dict]:
    return [scored(example, i) for i, example in enumerate(examples)]


# ---------------------------------------------------------------------------------------------- the dials


@pytest.mark.parametrize("name", ["tiny_tokenizer", "qwen3"])
def test_the_browser_blurs_what_the_trainer_blurs(request, show, tmp_path, name):
    """Rows, thresholds, epochs, units, seeds and kept tokens at random: the sets are equal without exception.

    The first threshold is one that no slider reaches, and the last epoch the one that the page was made in.
    """
    tokenizer, rng = request.getfixturevalue(name), np.random.default_rng(1)
    examples, seen = prepare(rows(5), tokenizer), 0
    model, _ = bt.load_model("tiny")
    model.resize_token_embeddings(len(tokenizer))
    for number in range(5):
        seed, keep_first = int(rng.integers(0, 2**32)), int(rng.integers(0, 4))
        config = BTSFTConfig(
            str(tmp_path / "run"), anchor=0, seed=42, keep_first=keep_first, use_cpu=True
        )
        trainer = BTSFTTrainer(model.train(), config, examples, processing_class=tokenizer)
        trainer.args.seed = seed  # transformers takes a smaller one at its start
        settings = [
            (round(float(rng.uniform()), 2), int(rng.integers(5)), UNITS[rng.integers(4)])
            for _ in range(7)
        ]
        late = int(rng.integers(5, 1000))
        first = (float(rng.uniform()), late, UNITS[rng.integers(4)])
        inspector = TokenInspector(
            examples[number],
            tokenizer,
            threshold=first[0],
            epoch=late,
            unit=first[2],
            seed=seed,
            keep_first=keep_first,
            score=scored(examples[number]),
        )
        page = show(inspector)
        for threshold, epoch, unit in [first, *settings, (0.5, late, "word")]:
            trainer.args.threshold, trainer.args.unit, trainer.state.epoch = threshold, unit, epoch
            batch = trainer._prepare_inputs(trainer.data_collator([examples[number]]))
            if (threshold, epoch, unit) == first:
                blurred = page.locator(".t").evaluate_all(BLURRED)
            else:
                tokens = page.evaluate(TURN, ["kind", threshold, epoch, unit, 0.5])
                blurred = [is_blurred for is_blurred, *_ in tokens]
            assert blurred == batch["blurred"][0].tolist(), (
                number,
                threshold,
                epoch,
                unit,
            )
            seen += batch["blurred"].sum().item()
    assert seen > 200
    assert_quiet(page)


def test_the_browser_shows_python_s_numbers(show, examples, scores, tiny_tokenizer):
    """Every token of every view, at two settings of the dials."""
    one, two = examples[0], scores[0]
    inspector = TokenInspector(one, tiny_tokenizer, score=two, compare=scored(one, 9), keep_first=1)
    page = show(inspector)
    settings = ((0.5, 0, "token", 0.5), (0.8, 3, "word", 1.7))
    for view, dials in itertools.product([view for view in VIEWS if view != "kind"], settings):
        inspector.view = view
        inspector.threshold, inspector.epoch, inspector.unit, inspector.beta = dials
        said = [number for _, number, _ in page.evaluate(TURN, [view, *dials])]
        values = inspector.values()
        for i, text in enumerate(said):
            value = values[..., i] * (1000 if view == "gradient" else 1)
            if text == "\u22480":
                assert np.abs(value).max() < 0.05
            elif text == "":
                assert not np.isfinite(value)
            else:
                shown = [float(part) for part in text.split("+")]
                np.testing.assert_allclose(
                    shown,
                    np.atleast_1d(value),
                    rtol=0.06,
                    atol={"gradient": 0.051, "blur": 0.001}.get(view, 1e-9),
                )
    assert_quiet(page)


def test_beta_moves_the_format_s_part_alone(show, examples, scores, tiny_tokenizer):
    """Twice beta is twice the format's share of the gradient, and the nll's stays."""
    page = show(TokenInspector(examples[0], tiny_tokenizer, score=scores[0]))
    parts = [
        np.array(
            [
                [float(part) for part in number.split("+")]
                for _, number, _ in tokens
                if "+" in number
            ]
        )
        for tokens in (
            page.evaluate(TURN, ["gradient", 0, 0, "token", beta]) for beta in (0.8, 1.6)
        )
    ]
    np.testing.assert_array_equal(parts[0][:, 0], parts[1][:, 0])
    np.testing.assert_allclose(2 * parts[0][:, 1], parts[1][:, 1], atol=0.11)
    assert parts[0][:, 1].max() > 50
    legend = page.locator(".legend").inner_text()
    assert "expected format reward R = 0.25" in legend and "= 1.2" in legend


# ---------------------------------------------------------------------------------------------- hands


def active(page) -> str:
    """The token that the card speaks of."""
    return page.locator(".card dd").first.inner_text()


def test_the_keyboard_walks_pins_and_selects(show, examples, scores, tiny_tokenizer):
    """Arrows, Home, End, Enter, Escape, Shift; the card has all that is known of the token."""
    inspector = TokenInspector(examples[1], tiny_tokenizer, score=scores[1])
    page, last = show(inspector), len(inspector.tokens) - 1
    page.locator(".text").focus()
    page.keyboard.press("ArrowRight")
    assert active(page).startswith("0: ")
    for key, at in (
        ("ArrowRight", 1),
        ("End", last),
        ("ArrowRight", last),
        ("ArrowLeft", last - 1),
        ("Home", 0),
    ):
        page.keyboard.press(key)
        assert active(page).startswith(f"{at}: "), key
    page.keyboard.press("ArrowDown")
    line = int(active(page).split(":")[0])
    assert line > 1
    page.keyboard.press("ArrowUp")
    assert int(active(page).split(":")[0]) < line
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    assert page.locator(".card.pinned").count() == 1
    page.locator(".t").nth(5).hover()
    card, score = page.locator(".card").inner_text(), scores[1]
    assert active(page).startswith(f"{last - 1}: "), "a pinned card stays"
    names = ("id", "kind", "weight", "nll", "rank", "probability", "loss", "kl", "gradient")
    for word in (*names, "p(<think>)", "p(</think>)", "model says"):
        assert word in card
    assert str(inspector.data["ids"][last - 1]) in card and f"\n{score['rank'][last - 1]}\n" in card
    page.keyboard.press("Escape")
    page.locator(".t").nth(6).hover()
    assert active(page).startswith("6: ") and page.locator(".card.pinned").count() == 0
    page.locator(".text").focus()
    for _ in range(3):
        page.keyboard.press("Shift+ArrowRight")
    assert page.locator(".picked").count() == 4
    assert_quiet(page)


def test_the_pointer_selects_by_dragging(show, examples, tiny_tokenizer):
    """From token to token, either way; characters of several tokens stay whole; a click selects nothing."""
    inspector = TokenInspector(examples[1], tiny_tokenizer)
    page, (first, *_) = show(inspector), inspector.data["joined"]
    for start, stop, wanted in ((3, 6, range(3, 7)), (6, 3, range(3, 7)), (first, first + 8, None)):
        one, other = (page.locator(".t").nth(i).bounding_box() for i in (start, stop))
        page.mouse.move(one["x"] + 2, one["y"] + 4)
        page.mouse.down()
        page.mouse.move(other["x"] + 2, other["y"] + 4, steps=6)
        page.mouse.up()
        picked = page.locator(".t.picked").evaluate_all("ts => ts.map(t => t._i)")
        assert picked == list(wanted) if wanted else picked[0] not in inspector.data["joined"]
        assert len(picked) == page.locator(".t[aria-selected=true]").count()
    page.locator(".t").nth(4).click()
    assert page.locator(".t.picked").count() == 0 and page.locator(".card.pinned").count() == 1
    assert_quiet(page)


def test_the_card_says_why_a_token_has_no_loss(show, examples, tiny_tokenizer):
    """Its draw beside the threshold, and the weight that it would have; so does its name for a screen reader."""
    inspector = TokenInspector(examples[1], tiny_tokenizer, threshold=0.5)
    page = show(inspector)
    blurred, kept = (
        int(np.flatnonzero(mask & np.isfinite(inspector.draws))[0])
        for mask in (inspector.blurred, ~inspector.blurred)
    )
    page.locator(".t").nth(blurred).hover()
    card = page.locator(".card").inner_text()
    assert "< threshold 0.5" in card and "no loss; the anchor's KL instead" in card
    assert "0 (1 if not blurred)" in card and f"{inspector.draws[blurred]:.2f}"[:3] in card
    page.locator(".t").nth(kept).hover()
    card = page.locator(".card").inner_text()
    assert "\u2265 threshold 0.5" in card and "no loss" not in card and "weight\n1\n" in card + "\n"
    page.get_by_label("view", exact=True).select_option("weight")
    names = page.locator(".t").evaluate_all("ts => ts.map(t => t.ariaLabel)")
    texts = inspector.data["texts"]
    assert names[blurred] == f"{texts[blurred]}, think, blurred, weight 0"
    assert names[kept] == f"{texts[kept]}, think, weight 1"


def test_a_set_is_stepped_through_and_an_example_searched(show, examples, tiny_tokenizer):
    """Next, previous, round the end; a text that several tokens make up is found where it begins, and again."""
    page = show(TokenInspector(examples, tiny_tokenizer))
    title = page.locator("h3")
    assert title.inner_text() == "row 0"
    page.get_by_role("button", name="next example").click()
    assert title.inner_text() == "row 1"
    for _ in range(2):
        page.get_by_role("button", name="previous example").click()
    assert title.inner_text() == "row 5" and page.get_by_text("6 of 6").is_visible()
    page.get_by_label("find").fill("Q5?")
    page.get_by_label("find").press("Enter")
    assert active(page).split(": ")[1].startswith("q")
    page.get_by_label("find").fill("<|im_")
    places = []
    for key in ("Enter", "Enter", "Enter", "Shift+Enter", "Shift+Enter", "Shift+Enter"):
        page.get_by_label("find").press(key)
        places.append(int(active(page).split(":")[0]))
    texts = prepare(rows(6), tiny_tokenizer)[5]["input_ids"]
    hits = [
        i for i, text in enumerate(tiny_tokenizer.convert_ids_to_tokens(texts)) if "<|im_" in text
    ]
    here = hits.index(places[0])
    turn = [hits[(here + step) % len(hits)] for step in (0, 1, 2, 1, 0, -1)]
    assert places == turn and len(hits) > 2
    page.get_by_label("find").fill("no such thing")
    page.get_by_label("find").press("Enter")
    assert (
        title.inner_text() == "row 5"
        and "not found: no such thing" in page.locator(".card").inner_text()
    )
    assert_quiet(page)


def test_what_is_seen_is_told_without_colour(show, examples, scores, tiny_tokenizer):
    """Kinds by their lines, blur by a stroke, values by bars and numbers; the legend counts."""
    page = show(TokenInspector(examples[0], tiny_tokenizer, score=scores[0], threshold=0.5))
    kinds, tokens = np.array(examples[0]["kinds"]), page.locator(".t")
    lines = tokens.evaluate_all("ts => ts.map(t => getComputedStyle(t).borderBottomStyle)")
    assert [len({lines[i] for i in np.flatnonzero(kinds == k)}) for k in range(4)] == [1] * 4
    assert len(set(lines)) == 4
    struck = "ts => ts.map(t => getComputedStyle(t.firstChild).textDecorationLine)"
    is_struck = [line == "line-through" for line in tokens.evaluate_all(struck)]
    assert is_struck == tokens.evaluate_all(BLURRED) and any(is_struck)
    legend = page.locator(".legend").inner_text()
    for kind, name in enumerate(("prompt", "tag", "think", "answer")):
        assert f"{name} {(kinds == kind).sum()}" in legend
    page.get_by_label("view", exact=True).select_option("loss")
    bars = tokens.evaluate_all("ts => ts.map(t => getComputedStyle(t).boxShadow)")
    assert len(set(bars)) > 3


def test_the_strip_has_the_tags_where_the_data_has_them(show, examples, scores, tiny_tokenizer):
    """A mark for each tag, bars for each token as high as the probability."""
    page, example = show(TokenInspector(examples[0], tiny_tokenizer, score=scores[0])), examples[0]
    marks = page.locator(".strip .place").evaluate_all(
        "rs => rs.map(r => Number(r.getAttribute('x')))"
    )
    first = next(i for i, kind in enumerate(example["kinds"]) if kind)
    span = len(example["kinds"]) - first
    assert page.locator(".strip svg").get_attribute("viewBox") == f"0 0 {span} 54"
    assert marks == [i - first for i, kind in enumerate(example["kinds"]) if kind == 1]
    heights = page.locator(".strip .open").evaluate_all(
        "rs => rs.map(r => Number(r.getAttribute('height')))"
    )
    opening = 50 * scores[0]["tags"][0][first:]
    np.testing.assert_allclose(heights, opening[opening >= 0.5], atol=1e-3)


# ---------------------------------------------------------------------------------------------- size


def test_long_sequences_are_laid_out_as_they_come_into_sight(show, tiny_tokenizer):
    """Of 6,000 tokens a page holds some thousand at first; the end, and a text in it, are reached all the same."""
    rng, n = np.random.default_rng(0), 6_000
    ids = rng.integers(5, 99, n).tolist()
    kinds = [0] * 50 + [1] + [2] * (n - 100) + [1] + [3] * 48
    example = {
        "id": "long",
        "input_ids": ids,
        "kinds": kinds,
        "weights": [float(kind > 0) for kind in kinds],
        "tags": [],
    }
    inspector = TokenInspector(example, tiny_tokenizer, score=scored(example), threshold=0.3)
    page = show(inspector)
    assert page.locator(".t").count() < 3000
    page.get_by_label("threshold").fill("0.95")
    inspector.threshold = 0.95
    assert f"{inspector.blurred.sum()} of {n - 100}" in page.locator(".legend").inner_text()
    page.locator(".text").focus()
    page.keyboard.press("End")
    assert active(page).startswith(f"{n - 1}: ")
    assert page.locator(".t.on").evaluate("t => t._i") == n - 1
    page.wait_for_timeout(200)
    assert page.locator(".t.on").evaluate(
        "t => { const b = t.getBoundingClientRect(); return b.top > 0 && b.bottom < 900 }"
    )
    assert_quiet(page)


@pytest.mark.parametrize(("width", "zoom"), [(320, 1), (1280, 2)])
def test_narrow_cells_and_zoom_lose_nothing(show, examples, scores, tiny_tokenizer, width, zoom):
    """Nothing stands out of the page to the right, and every control can be reached."""
    page = show(TokenInspector(examples, tiny_tokenizer, score=scores))
    page.set_viewport_size({"width": width // zoom, "height": 700})
    page.wait_for_timeout(100)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for name in ("view", "threshold", "epoch", "unit", "beta", "find", "next example"):
        box = page.get_by_label(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width // zoom, name


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_in_light_and_dark(show, page, examples, scores, tiny_tokenizer, scheme):
    """Text stands out from what is behind it by a contrast of 4.5 or more, and controls fit."""
    page.emulate_media(color_scheme=scheme)
    show(TokenInspector(examples, tiny_tokenizer, score=scores, threshold=0.4, view="loss"))
    page.wait_for_timeout(100)
    assert (
        page.locator("[data-lm-suppress-shortcuts]").evaluate("e => e.style.colorScheme") == scheme
    )
    ink, paper = {"light": (0, 255), "dark": (255, 18)}[scheme]
    colors = page.locator(".t").evaluate_all(
        "ts => ts.map(t => getComputedStyle(t).backgroundColor)"
    )
    assert len(set(colors)) > 3
    for color in set(colors):
        tint = [float(x) for x in re.findall(r"[\d.]+(?:e-\d+)?", color)]
        if "srgb" in color:
            tint[:3] = [255 * x for x in tint[:3]]
        alpha = tint[3] if len(tint) > 3 else 1
        behind = [paper + alpha * (c - paper) for c in tint[:3]]
        assert contrast([ink] * 3, behind) >= 4.5, color
    screenshot(page, f"inspector-{scheme}")


def contrast(one: list[float], other: list[float]) -> float:
    """Of WCAG 2."""
    light = [
        np.dot(
            [0.2126, 0.7152, 0.0722],
            [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color],
        )
        for color in (np.array(one) / 255, np.array(other) / 255)
    ]
    return (max(light) + 0.05) / (min(light) + 0.05)


# ---------------------------------------------------------------------------------------------- hostile text


def hostile(tokenizer, payloads: list[str]) -> tuple[dict, object]:
    """An example whose tokens are the payloads, and the tokenizer that has them."""
    tokenizer = copy.deepcopy(tokenizer)
    own = [text for text in payloads if text.strip()]
    tokenizer.add_tokens(own)
    ids = [5, *tokenizer.convert_tokens_to_ids(own)]
    kinds = [0, *[2] * len(own)]
    return {
        "id": " ".join(own),
        "input_ids": ids,
        "kinds": kinds,
        "weights": [0.0, *[1.0] * len(own)],
        "tags": [],
    }, tokenizer


@pytest.fixture(scope="module")
def armed(tiny_tokenizer) -> TokenInspector:
    """All payloads as tokens, as alternatives, and as the title."""
    example, tokenizer = hostile(tiny_tokenizer, list(PAYLOADS.values()))
    score = scored(example)
    score["top_ids"] = np.random.default_rng(0).choice(example["input_ids"], score["top_ids"].shape)
    return TokenInspector(example, tokenizer, score=score, threshold=0.5)


def test_hostile_text_on_a_page(show, armed):
    """Nothing runs, nothing is fetched, and each token's text is the text given; every card is opened."""
    page = show(armed)
    seen = [text for *_, text in page.evaluate(TURN, ["loss", 0.3, 1, "word", 1.0])]
    assert (
        seen == armed.data["texts"]
        and page.locator("h3").inner_text().split() == armed.data["id"].split()
    )
    page.locator(".text").focus()
    for i in range(len(seen)):
        page.keyboard.press("ArrowRight")
        assert page.locator(".card dd").first.text_content() == f"{i}: {armed.data['texts'][i]}"
    assert_quiet(page)


def test_hostile_text_through_nbconvert(page, tmp_path, armed):
    """The notebook as a page: nothing runs and nothing is asked for but what nbconvert's own template asks for.

    One of its cells has the script, the other one what stands without.
    """
    data, _ = armed._repr_mimebundle_()
    shown = [data["text/html"], static_view(armed)]
    outputs = [new_output("display_data", {"text/html": html}) for html in shown]
    asked = []
    for name, cells in (
        ("bare", [new_code_cell("1")]),
        ("armed", [new_code_cell("1", outputs=[output]) for output in outputs]),
    ):
        html, _ = HTMLExporter().from_notebook_node(new_notebook(cells=cells))
        (tmp_path / f"{name}.html").write_text(html, encoding="utf-8")
        before = len(page.heard.strays)
        page.goto(f"file://{tmp_path / name}.html")
        page.wait_for_timeout(500)
        asked.append(set(page.heard.strays[before:]))
    assert asked[0] == asked[1]
    assert not page.heard.dialogs and page.evaluate("window.PWNED") is None
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    for place in (".t", "bdi"):
        seen = [text.replace("\xa0", "") for text in page.locator(place).all_text_contents()]
        assert seen == [text.replace("\xa0", "") for text in armed.data["texts"]], place


def test_hostile_text_in_an_untrusted_notebook(page, lab, armed):
    """JupyterLab strips the script; the static view stands, and its text is the text given."""
    data, _ = armed._repr_mimebundle_()
    cell = new_code_cell(
        "1", outputs=[new_output("display_data", {"text/html": data["text/html"]})]
    )
    open_notebook(page, lab, [cell], run=False, trusted=False)
    page.locator(".jp-OutputArea-output bdi").first.wait_for()
    assert page.locator(".t").count() == 0
    seen = page.locator(".jp-OutputArea-output bdi").all_text_contents()
    assert seen == [text or "\xa0" for text in armed.data["texts"]]
    assert_quiet(page)
    screenshot(page, "inspector-untrusted")


def test_hostile_text_in_a_living_widget(page, lab, armed, tmp_path):
    """The same in a kernel's hands, in a notebook that is trusted: every card is opened, every view is seen.

    A trait that is set in a cell is seen at once.
    """
    (lab.work / "armed.pkl").write_bytes(
        pickle.dumps((armed.example, armed._tokenizer, armed._scores * 2))
    )
    load = "import pickle\nimport btsft_nb as bt\nexample, tokenizer, score = pickle.load(open('armed.pkl', 'rb'))"
    load += "\ntwo = [{**example, 'id': 'first'}, example]"
    make = "inspector = bt.TokenInspector(two, tokenizer, score=score, editable=True)"
    later = "inspector.index, inspector.threshold, inspector.view = 1, 1.0, 'weight'"
    open_notebook(page, lab, [load, f"{make}\ninspector", later])
    page.get_by_text("2 of 2").wait_for()
    assert page.get_by_label("threshold").input_value() == "1"
    assert page.get_by_label("view", exact=True).input_value() == "weight"
    page.locator(".t").first.wait_for()
    assert page.locator(".t.blurred").count() > 0
    for view in ("loss", "probability", "gradient", "kind"):
        page.get_by_label("view", exact=True).select_option(view)
    page.locator(".text").focus()
    for i in range(len(armed.data["texts"])):
        page.keyboard.press("ArrowRight")
        assert page.locator(".card dd").first.text_content() == f"{i}: {armed.data['texts'][i]}"
    assert page.locator(".t").all_text_contents() == armed.data["texts"]
    assert_quiet(page)


# ---------------------------------------------------------------------------------------------- front ends

CELLS = [
    """
import json
import btsft_nb as bt
tokenizer = bt.load_tokenizer("tiny")
examples = bt.prepare(list(bt.load_rows("tiny/teacher"))[:8], tokenizer)
inspector = bt.TokenInspector(examples, tokenizer, threshold=0.2, editable=True)
def note(change):
    names = ("threshold", "epoch", "unit", "view", "index", "selection", "edits")
    state = {name: getattr(inspector, name) for name in names}
    state |= {"weights": inspector.example["weights"], "blurred": inspector.blurred.tolist()}
    open("state.json", "w").write(json.dumps(state))
inspector.observe(note, names=["threshold", "epoch", "unit", "view", "index", "selection", "edits"])
""",
    "inspector",
]

SHOWS = """wanted => {
  const root = document.querySelector("[data-lm-suppress-shortcuts]").shadowRoot
  const blurred = [...root.querySelectorAll(".t")].map(t => t.classList.contains("blurred"))
  return wanted.join() === blurred.join()
}"""


def told(lab, name: str, wanted, page):
    """What the kernel came to know, as soon as it is as wanted."""
    for _ in range(300):
        page.wait_for_timeout(100)
        path = lab.work / "state.json"
        state = json.loads(path.read_text() or "{}") if path.exists() else {}
        if state.get(name) == wanted:
            return state
    pytest.fail(f"{name} is {state.get(name)!r}, not {wanted!r}")


@pytest.mark.parametrize(("app", "theme"), [("lab", "dark"), ("notebook", "light")])
def test_hands_on_in_a_notebook(page, lab, app, theme):
    """Slider, epoch, unit, keys, edit, undo, next: the kernel follows, and no key reaches the notebook.

    The draws of an epoch that no page has come from the kernel.
    """
    (lab.work / "state.json").unlink(missing_ok=True)
    open_notebook(page, lab, CELLS, app=app, theme=theme)
    page.locator(".t").first.wait_for()
    cells = page.locator(".jp-Notebook .jp-Cell").count()
    slider = page.get_by_label("threshold")
    slider.fill("0.7")
    told(lab, "threshold", 0.7, page)
    page.get_by_label("epoch").fill("1234")
    told(lab, "epoch", 1234, page)
    page.get_by_label("unit").select_option("word")
    state = told(lab, "unit", "word", page)
    page.wait_for_function(SHOWS, arg=state["blurred"])
    page.locator(".text").focus()
    for key in (
        "End",
        "ArrowLeft",
        "ArrowLeft",
        "Shift+ArrowLeft",
        "Shift+ArrowLeft",
        "b",
        "a",
        "d",
        "d",
        "x",
    ):
        page.keyboard.press(key)
    n = page.locator(".t").count()
    told(lab, "selection", [n - 5, n - 2], page)
    page.get_by_label("weight of the selection").fill("0.5")
    page.get_by_role("button", name="Set").click()
    state = told(lab, "edits", [[0, n - 5, n - 2, 0.5]], page)
    assert state["weights"][n - 6 :] == [1.0, 0.5, 0.5, 0.5, 1.0, 1.0]
    page.get_by_label("view", exact=True).select_option("weight")
    told(lab, "view", "weight", page)
    assert page.locator(".t").nth(n - 4).get_attribute("data-n") == "0.5"
    page.get_by_role("button", name="Undo").click()
    assert told(lab, "edits", [], page)["weights"][n - 4] == 1.0
    page.get_by_role("button", name="next example").click()
    state = told(lab, "index", 1, page)
    page.wait_for_function(SHOWS, arg=state["blurred"])
    assert page.locator(".jp-Notebook .jp-Cell").count() == cells, "a key reached the notebook"
    screenshot(page, f"inspector-{app}-{theme}")
    assert (
        page.locator("[data-lm-suppress-shortcuts]").evaluate("e => e.style.colorScheme") == theme
    )
    assert_quiet(page)


def test_in_marimo(page, open_marimo):
    """The same object as a cell's last expression."""
    build = (
        'import btsft_nb as bt\ntokenizer = bt.load_tokenizer("tiny")\n'
        'examples = bt.prepare(list(bt.load_rows("tiny/teacher"))[:3], tokenizer)\n'
        "bt.TokenInspector(examples, tokenizer, threshold=0.5)"
    )
    open_marimo(page, [build])
    page.locator(".t").first.wait_for(timeout=120_000)
    before = page.locator(".t.blurred").count()
    page.get_by_label("threshold").fill("1")
    page.wait_for_function(
        "document.querySelector('marimo-anywidget, [data-lm-suppress-shortcuts]') !== null"
    )
    page.wait_for_timeout(300)
    assert page.locator(".t.blurred").count() > before > 0
    screenshot(page, "inspector-marimo")
