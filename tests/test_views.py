"""The inspector's HTML, which hostile text must not break, and figures, which must draw without a warning."""

import copy
import inspect
import io
import warnings
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure

from btsft_nb import Kind, TokenInspector, draws, evaluate, example_key, plots, prepare, token_texts
from btsft_nb.inspector import VIEWS

PAYLOADS = [
    "<script>alert(1)</script>", "</script><script>x", '"><img src=x onerror=alert(1)>', "' onmouseover='alert(1)",
    "\" style=\"position:fixed", "</span></div><h1>x", "<!-- x", "]]><svg/onload=x>", "&lt;b&gt; &amp;amp; &#60;i&#62;",
    "<iframe src=//evil.example>", "javascript:alert(1)", "a\nb\r\nc\u2028d", "\u202ertl", "`${x}`", "{{x}}",
]  # fmt: skip
ALLOWED_TAGS = {"div", "span", "b", "s", "br", "small"}


class Page(HTMLParser):
    """What a browser would make of a page: its tags, attributes and text."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.titles, self.words, self.other = set(), set(), [], [], []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.titles += [value for name, value in attrs if name == "title"]

    def handle_data(self, data):
        self.words.append(data)

    def handle_comment(self, data):
        self.other.append(data)

    handle_decl = handle_pi = unknown_decl = handle_comment


@pytest.fixture(scope="module")
def example(tiny_tokenizer) -> dict:
    talk = [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "<think>Count: 2, 3,\n4.</think>\n\n4"},
    ]
    return prepare([{"id": "row", "messages": talk}], tiny_tokenizer)[0]


@pytest.fixture(scope="module")
def score(example) -> dict:
    """Made up, of the shape that `score` gives."""
    n = len(example["input_ids"])
    rng = np.random.default_rng(0)
    return {
        "log_probs": np.log(rng.uniform(0.01, 1, n)),
        "tags": rng.uniform(0, 1, (2, n)),
        "expected_reward": 0.25,
        "format_pull": rng.uniform(0, 0.2, n),
    }


# ---------------------------------------------------------------------------------------------- inspector


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_text_stays_text(tiny_tokenizer, example, score, payload, view):
    """As a single token, and as the id: no tag, no attribute, no comment comes of it, and all of it can be read."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens([payload])
    hostile = {**example, "id": payload, "input_ids": [len(tokenizer) - 1] * len(example["input_ids"])}
    assert token_texts(tokenizer, hostile["input_ids"])[0] == payload
    html = TokenInspector(hostile, tokenizer, score=score, view=view).to_html()
    page = Page(html)
    assert page.tags <= ALLOWED_TAGS and page.attributes <= {"style", "title"} and not page.other
    assert "<script" not in html.lower()
    assert "".join(page.words).replace("\u21b5", "\n").count(payload) == len(hostile["input_ids"]) + 1
    assert all(repr(payload) in title for title in page.titles if title)


@given(st.text(max_size=20))
def test_any_id_is_text(tiny_tokenizer, example, name):
    """Whatever a data set calls its rows."""
    page = Page(TokenInspector({**example, "id": name}, tiny_tokenizer)._repr_html_())
    assert page.tags <= ALLOWED_TAGS and page.attributes <= {"style", "title"} and not page.other


@pytest.mark.parametrize("view", VIEWS)
def test_the_page_fetches_nothing(tiny_tokenizer, example, score, view):
    """No script, no style sheet, no address."""
    html = TokenInspector(example, tiny_tokenizer, score=score, view=view).to_html().lower()
    for word in ("<script", "http", "url(", "src=", "href=", "<link", "<style", "@import", "<img"):
        assert word not in html


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("seed", "epoch", "keep_first"), [(42, 0, 0), (1, 3, 2)])
def test_blurred_is_what_the_draws_say(tiny_tokenizer, example, threshold, seed, epoch, keep_first):
    """The very tokens that training blurs."""
    inspector = TokenInspector(
        example, tiny_tokenizer, threshold=threshold, seed=seed, epoch=epoch, keep_first=keep_first
    )  # fmt: skip
    u = draws(np.array(example["kinds"]), example_key(example["id"]), seed, epoch, keep_first)
    assert np.array_equal(inspector.blurred, u < threshold)
    assert inspector.to_html().count("<s>") == (u < threshold).sum() + 1  # and one in the legend


def test_unsupervised_thoughts_are_not_called_blurred(tiny_tokenizer, example):
    """A token of weight 0 is not trained anyway."""
    silent = {**example, "weights": [0.0] * len(example["weights"])}
    assert not TokenInspector(silent, tiny_tokenizer, threshold=1).blurred.any()


def test_values_of_each_view(tiny_tokenizer, example, score):
    """Weight 0 where blurred, loss and gradient to match, probabilities as scored."""
    inspector = TokenInspector(example, tiny_tokenizer, threshold=0.5, beta=2.0, score=score)
    shown = {}
    for view in VIEWS:
        inspector.view = view
        shown[view] = inspector.values()
    weights = np.where(inspector.blurred, 0, example["weights"])
    p, n = np.exp(score["log_probs"]), np.count_nonzero(example["weights"])
    assert shown["kind"].tolist() == example["kinds"]
    np.testing.assert_allclose(shown["weight"], weights)
    np.testing.assert_allclose(shown["probability"], p)
    np.testing.assert_allclose(shown["loss"], -weights * np.log(p))
    np.testing.assert_allclose(shown["gradient"], [weights * (1 - p) / n, 2 * score["format_pull"]])


def test_every_token_is_shown_with_its_kind_in_words(tiny_tokenizer, example):
    """Colour repeats what the hint says."""
    page = Page(TokenInspector(example, tiny_tokenizer).to_html())
    hints = [title for title in page.titles if title]
    assert len(hints) == len(example["input_ids"])
    assert all(Kind(kind).name.lower() in hint for kind, hint in zip(example["kinds"], hints, strict=True))


def test_an_unknown_view_lists_the_known_ones(tiny_tokenizer, example):
    """All five."""
    with pytest.raises(ValueError, match="view='los': one of kind, weight, loss, probability, gradient wanted"):
        TokenInspector(example, tiny_tokenizer, view="los")


@pytest.mark.parametrize("view", ["loss", "probability", "gradient"])
def test_a_view_without_its_score_says_how_to_get_one(tiny_tokenizer, example, view):
    """By the call."""
    with pytest.raises(ValueError, match=rf"view='{view}' needs score=.*score\("):
        TokenInspector(example, tiny_tokenizer, view=view)


# ---------------------------------------------------------------------------------------------- plots

LOGS = [
    {"step": step, "nll_think": 1 / step, "nll_answer": 0.5, "nll_tag": 0.1, "blurred_share": 0.2,
     "expected_reward": 0.3, "format_reward": 0.0}
    for step in (5, 10)
]  # fmt: skip
SAMPLES = [
    {"prompt": i, "text": f"<think>{i}</think>{i}", "prefilled": False, "finished": True} for i in range(4)
]  # fmt: skip


def saved(figure: Figure) -> bytes:
    """The figure as PNG; a warning is an error."""
    assert isinstance(figure, Figure)
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


SUMMARIES = {
    name: evaluate(SAMPLES, answers, lambda thought: "odd" if int(thought) % 2 else "even")
    for name, answers in {"before": "0123", "after": "0103"}.items()
}
PLOTS = {
    "lengths_and_kinds": lambda e, t, s: plots.lengths_and_kinds([e, e]),
    "blurred_thought": lambda e, t, s: plots.blurred_thought(t, e["kinds"], draws(e["kinds"], 1, 0, 0), [0, 0.5, 1]),
    "one threshold": lambda e, t, s: plots.blurred_thought(t, e["kinds"], draws(e["kinds"], 1, 0, 0), [0.2]),
    "training_curves": lambda e, t, s: plots.training_curves({"a": LOGS, "b": LOGS[:1]}, "title"),
    "no logs yet": lambda e, t, s: plots.training_curves({"just begun": []}),
    "partial logs": lambda e, t, s: plots.training_curves({"a": [{"step": 1, "nll_think": 1.0}, {"step": 1}]}),
    "bars": lambda e, t, s: plots.bars(SUMMARIES, ["accuracy", "pass@1"]),
    "many bars": lambda e, t, s: plots.bars({str(i): SUMMARIES["after"] for i in range(7)}, ["accuracy"]),
    "ways": lambda e, t, s: plots.ways(SUMMARIES),
    "tag_probabilities": lambda e, t, s: plots.tag_probabilities(t, e["kinds"], s, "title"),
}


@pytest.mark.parametrize("draw", PLOTS.values(), ids=PLOTS)
def test_each_plot_is_a_figure_that_saves_without_a_warning(tiny_tokenizer, example, score, draw):
    """PNG, with something on it."""
    png = saved(draw(example, token_texts(tiny_tokenizer, example["input_ids"]), score))
    assert png.startswith(b"\x89PNG") and len(png) > 3000


def test_no_plot_is_forgotten():
    """Each public function of `plots` that is its own is drawn above."""
    public = {name for name, f in vars(plots).items() if inspect.isfunction(f) and f.__module__ == plots.__name__}
    assert {name for name in public if not name.startswith("_")} <= set(PLOTS)


@pytest.mark.parametrize("token", ["$$", " $_$"])
@pytest.mark.parametrize("plot", ["blurred_thought", "tag_probabilities"])
def test_dollar_signs_in_tokens_are_text(score, plot, token):
    """Mathematical traces are full of them."""
    tokens, kinds = ["q", token, "a"], [Kind.PROMPT, Kind.THINK, Kind.ANSWER]
    if plot == "blurred_thought":
        saved(plots.blurred_thought(tokens, kinds, draws(kinds, 1, 0, 0), [0.5]))
    else:
        saved(plots.tag_probabilities(tokens, kinds, {**score, "tags": score["tags"][:, :3]}))


def test_plots_show_what_they_are_given(example, score):
    """Shares add up to all tokens, bars have the values, curves the points, blur the counts."""
    shares = [bar.get_width() for bar in plots.lengths_and_kinds([example]).axes[1].patches]
    assert shares == [example["kinds"].count(kind) / len(example["kinds"]) for kind in Kind]
    (ax,) = plots.bars(SUMMARIES, ["accuracy"]).axes
    assert [bar.get_height() for bar in ax.patches] == [1, 0.75]
    curves = plots.training_curves({"a": LOGS}).axes
    assert [line.get_ydata().tolist() for line in curves[0].lines] == [[log["nll_think"] for log in LOGS]]
    assert len(curves[3].lines) == 2
    u = draws(example["kinds"], 1, 0, 0)
    tokens = [str(i) for i in range(len(u))]
    title = plots.blurred_thought(tokens, example["kinds"], u, [0.5]).axes[0].get_title(loc="left")
    assert f"{(u < 0.5).sum()} of {np.isfinite(u).sum()} blurred" in title
    (ax,) = plots.tag_probabilities(tokens, example["kinds"], score).axes
    start = example["kinds"].index(Kind.TAG)
    np.testing.assert_allclose([line.get_ydata() for line in ax.lines[:2]], score["tags"][:, start:])


def test_the_dials_redraw(tiny_tokenizer, example, score):
    """Each slider and the choice of view changes the page, which stays what `to_html` says."""
    inspector = TokenInspector(example, tiny_tokenizer, threshold=0.2, score=score)
    controls, page = inspector.dials().children
    pages = [page.value]
    for control, value in zip(controls.children, (0.9, 1.5, "gradient"), strict=True):
        control.value = value
        pages.append(page.value)
        assert page.value == inspector.to_html()
    assert len(set(pages)) == len(pages)
    assert (inspector.threshold, inspector.beta, inspector.view) == (0.9, 1.5, "gradient")
