"""The inspector's HTML, which hostile text must not break."""

import copy
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from btsft_nb import Kind, TokenInspector, draws, example_key, prepare, token_texts
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
