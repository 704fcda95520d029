"""The inspector in Python: what it says, refuses, edits and sends, and its HTML, which hostile text must not break."""

import copy
import json
import re
from html.parser import HTMLParser

import datasets
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from payloads import PAYLOADS
from traitlets import TraitError

import btsft_nb as bt
from btsft_nb import Kind, TokenInspector, draws, example_key, prepare, token_texts
from btsft_nb.views.inspector_data import VIEWS, ShownExample, visible_texts

ALLOWED_TAGS = {"code", "span", "b", "s", "br", "small", "bdi"}


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


def split(html: str) -> tuple[str, str]:
    """What stands without script, and the script."""
    static, script = re.fullmatch(
        r'<div data-btsft="\w+">(.*)</div><script type="module">(.*)</script>', html, re.S
    ).groups()
    return static, script


@pytest.fixture(scope="module")
def row() -> dict:
    talk = [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "<think>Count: 2, 3,\n4. Yes.</think>\n\n4"},
    ]
    return {"id": "row", "messages": talk}


@pytest.fixture(scope="module")
def example(tiny_tokenizer, row) -> dict:
    return prepare([row], tiny_tokenizer)[0]


@pytest.fixture(scope="module")
def scores(tiny_tokenizer, example) -> tuple[dict, dict]:
    """Of the embedded model, and of one that a fixed number of adapters' weights was moved in."""
    model, _ = bt.load_model("tiny", qlora=True)
    for i, (name, parameter) in enumerate(model.named_parameters()):
        if "lora_B" in name:
            parameter.data.fill_(0.01 * (i % 5))
    with model.disable_adapter():
        before = bt.score(model, tiny_tokenizer, [example])[0]
    return before, bt.score(model, tiny_tokenizer, [example], kl=True)[0]


@pytest.fixture
def looked(example, tiny_tokenizer, scores) -> TokenInspector:
    return TokenInspector(
        example, tiny_tokenizer, score=scores[1], compare=scores[0], threshold=0.5, beta=2.0
    )


# ---------------------------------------------------------------------------------------------- what it says


@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("unit", ["token", "word", "sentence", "thought"])
@pytest.mark.parametrize(("seed", "epoch", "keep_first"), [(42, 0, 0), (1, 3, 2)])
def test_blurred_is_what_the_draws_say(
    tiny_tokenizer, example, threshold, unit, seed, epoch, keep_first
):
    """The very tokens that training blurs; each is struck out in the static view."""
    from btsft_nb.objective.blur import unit_ids

    inspector = TokenInspector(
        example, tiny_tokenizer, threshold=threshold, unit=unit, seed=seed, epoch=epoch, keep_first=keep_first
    )  # fmt: skip
    units = unit_ids(example["kinds"], token_texts(tiny_tokenizer, example["input_ids"]), unit)
    u = draws(
        np.array(example["kinds"]), example_key(example["id"]), seed, epoch, keep_first, units
    )
    assert np.array_equal(inspector.blurred, u < threshold)
    assert split(inspector.to_html())[0].count("<s>") == (u < threshold).sum()


def test_unsupervised_thoughts_are_not_called_blurred(tiny_tokenizer, example):
    """A token of weight 0 is not trained anyway."""
    silent = {**example, "weights": [0.0] * len(example["weights"])}
    assert not TokenInspector(silent, tiny_tokenizer, threshold=1.0).blurred.any()


def test_values_of_each_view(looked, example, scores):
    """Weight 0 where blurred, loss and gradient to match, probabilities as scored, draws where there are any."""
    values = {}
    for view in VIEWS:
        looked.view = view
        values[view] = looked.values()
    before, after = scores
    weights, n = (
        np.where(looked.blurred, 0, example["weights"]),
        np.count_nonzero(example["weights"]),
    )
    p = np.exp(after["log_probs"])
    assert values["kind"].tolist() == example["kinds"] and 0 < looked.blurred.sum() < n
    np.testing.assert_allclose(values["weight"], weights)
    np.testing.assert_allclose(values["probability"][1:], p[1:])
    np.testing.assert_allclose(values["loss"], -weights * np.log(p), atol=1e-6)
    np.testing.assert_allclose(
        values["gradient"], [weights * (1 - p) / n, 2 * after["format_pull"]], atol=1e-9
    )
    prompt = np.array(example["kinds"]) == Kind.PROMPT
    np.testing.assert_allclose(
        values["change"][~prompt], (after["log_probs"] - before["log_probs"])[~prompt]
    )
    assert (
        np.array_equal(values["kl"][~prompt], after["kl"][~prompt]) and (after["kl"][1:] > 0).all()
    )
    assert np.isnan(values["kl"][prompt]).all() and np.isnan(values["change"][prompt]).all()
    assert np.array_equal(np.isfinite(values["blur"]), np.array(example["kinds"]) == Kind.THINK)


def test_it_says_in_words_what_it_shows(looked):
    """In a terminal, in a log, and to nbval."""
    n, thought = len(looked.example["kinds"]), looked.example["kinds"].count(Kind.THINK)
    said = (
        f"{n} tokens, {looked.blurred.sum()} of {thought} thought tokens blurred at threshold 0.50"
    )
    assert repr(looked) == f"TokenInspector('row': {said})"


def test_a_set_is_walked(tiny_tokenizer):
    """By index from Python; what was selected in one example is not in the next."""
    examples = prepare(list(bt.load_rows("tiny/teacher"))[:20], tiny_tokenizer)
    inspector = TokenInspector(examples, tiny_tokenizer, index=3)
    assert inspector.example["id"] == examples[3]["id"] == inspector.data["id"]
    inspector.selection = [1, 4]
    inspector.index = 5
    assert inspector.data["id"] == examples[5]["id"] and inspector.selection == []
    assert len(inspector.token_draws) == len(inspector.data["kinds"]) == len(inspector.tokens)


def test_the_dials_stand_where_training_has_them(tiny_tokenizer, example, tmp_path):
    """Bug 8: the inspector showed a tenth of the format's gradient."""
    inspector, config = TokenInspector(example, tiny_tokenizer), bt.BTSFTConfig(str(tmp_path))
    for dial in ("threshold", "beta", "unit", "keep_first", "seed"):
        assert getattr(inspector, dial) == getattr(config, dial), dial


@given(st.integers(0, 1000).map(lambda n: n / 1000) | st.floats(0, 1))
def test_draws_of_a_page_compare_as_the_draws_do(tiny_tokenizer, example, threshold):
    """With the threshold, however long, and with each step of the slider; just below a step, too."""
    shown = ShownExample(example, tiny_tokenizer, None, None)
    just_below = np.nextafter(np.arange(1, 101) / 100, 0)
    u = np.array([*np.random.default_rng(0).random(9), threshold, *just_below, np.inf])
    u = u[(u < 1) | np.isinf(u)]
    shown.draws = lambda seed, epoch, keep_first, unit: u
    rounded = np.array(shown.page_draws(0, [0], 0, threshold)["word"][0])
    for other in (threshold, *np.arange(101) / 100):
        assert np.array_equal(rounded < other, u < other)
    assert rounded[-1] == 1 and max(len(str(x)) for x in rounded if x != threshold) <= 5


def test_characters_of_several_tokens_are_shown_whole(tiny_tokenizer):
    """The first token has the character; what no token continues stays the replacement character."""
    ids = tiny_tokenizer.encode("a\u65e5b\U0001f389", add_special_tokens=False)
    texts, joined = visible_texts(tiny_tokenizer, ids)
    assert "".join(texts).replace("\u2025", "") == "a\u65e5b\U0001f389" and len(texts) == len(ids)
    assert joined == [i for i, text in enumerate(texts) if text == "\u2025"] and len(joined) == 5
    assert visible_texts(tiny_tokenizer, ids[1:3])[0] == ["\ufffd", "\ufffd"]


def test_spaces_are_shown_where_a_decoder_takes_the_first_away(shared):
    """SentencePiece tokenizers, token by token; words and sentences are found by the same texts."""
    tokenizer = bt.load_tokenizer(shared / "tokenizers" / "phi-3-mini")
    bt.add_tags(tokenizer)
    ids = tokenizer.encode("So the quick fox. Don't 7", add_special_tokens=False)
    assert "".join(token_texts(tokenizer, ids)).strip() == "So the quick fox. Don't 7"
    row = {
        "messages": [
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "<think>b c d</think>\n\ne"},
        ]
    }
    (example,) = prepare([row], tokenizer)
    inspector = TokenInspector(example, tokenizer, unit="word")
    u = inspector.draws[np.isfinite(inspector.draws)]
    assert len(set(u)) == 3


# ---------------------------------------------------------------------------------------------- what it refuses


def test_an_unknown_view_or_unit_lists_the_known_ones(tiny_tokenizer, example):
    """At once, and when it is set later."""
    with pytest.raises(
        ValueError, match=r"view='los' is none of kind, weight, blur; score=.*bring others"
    ):
        TokenInspector(example, tiny_tokenizer, view="los")
    inspector = TokenInspector(example, tiny_tokenizer)
    with pytest.raises(TraitError, match=r"unit.*token.*word.*sentence.*thought.*line"):
        inspector.unit = "line"


@pytest.mark.parametrize("view", ["loss", "kl", "change"])
def test_a_view_without_its_score_says_how_to_get_one(tiny_tokenizer, example, scores, view):
    """By the call."""
    score = None if view == "loss" else scores[0]
    with pytest.raises(ValueError, match=rf"'{view}' is none .*score=bt.score.*kl=.*compare="):
        TokenInspector(example, tiny_tokenizer, score=score, view=view)


@pytest.mark.parametrize(
    "dial", [{"threshold": 1.5}, {"beta": -1.0}, {"epoch": -1}, {"seed": 2**32}, {"keep_first": -1}]
)
def test_a_dial_out_of_its_range_is_named(tiny_tokenizer, example, dial):
    """With the value given."""
    ((name, value),) = dial.items()
    with pytest.raises(TraitError, match=rf"'{name}' trait .*{re.escape(str(value))}"):
        TokenInspector(example, tiny_tokenizer, **dial)


def test_an_unknown_dial_is_named(tiny_tokenizer, example):
    """With the nearest one."""
    with pytest.raises(ValueError, match="'treshold', did you mean 'threshold'"):
        TokenInspector(example, tiny_tokenizer, treshold=0.5)


def test_scores_of_other_examples_are_refused(tiny_tokenizer, example, scores):
    """By number and by length; so is an index beyond the end, and nothing to show."""
    with pytest.raises(ValueError, match=r"score must have one for each of the 2 examples"):
        TokenInspector([example, example], tiny_tokenizer, score=[scores[0]])
    with pytest.raises(ValueError, match=r"score must have .* a value for each token"):
        TokenInspector(
            example, tiny_tokenizer, score={**scores[0], "log_probs": scores[0]["log_probs"][1:]}
        )
    with pytest.raises(ValueError, match="index=2, but there are 1 examples"):
        TokenInspector(example, tiny_tokenizer, index=2)
    with pytest.raises(ValueError, match="no example"):
        TokenInspector([], tiny_tokenizer)


def test_edits_that_do_not_fit_are_refused(tiny_tokenizer, example):
    """By what was given; NumPy's numbers are as good as Python's."""
    inspector = TokenInspector(example, tiny_tokenizer, editable=True)
    for edit in ([0, -1, 2, 1.0], [0, 1, 2, "x"], [0, 1, 2]):
        with pytest.raises(TraitError, match="edits"):
            inspector.edits = [edit]
    for edit in ([0, 5, 3, 1.0], [1, 1, 2, 1.0], [0, 1, 2, float("nan")], [0, 1, 2, 1e9]):
        with pytest.raises(ValueError, match="an edit is out of range"):
            inspector.edits = [edit]
    inspector.edits = [[0, np.int64(20), np.int64(10_000), np.float32(0.5)]]
    assert inspector.example["weights"][20] == 0.5 and inspector.to_html()


@pytest.mark.parametrize("kind", ["numpy", "torch", None])
def test_a_data_set_in_any_format(tiny_tokenizer, kind):
    """What `prepare` returns may have been told to give arrays or tensors."""
    examples = prepare(list(bt.load_rows("tiny/teacher"))[:3], tiny_tokenizer)
    plain = TokenInspector(examples, tiny_tokenizer).to_html()
    assert TokenInspector(examples.with_format(kind), tiny_tokenizer).to_html() == plain


# ---------------------------------------------------------------------------------------------- edits


def test_edits_set_weights_but_not_those_of_the_prompt(tiny_tokenizer, example):
    """The later edit wins; taking the last away undoes it; the example that was given stays as it was."""
    two, before = [example, {**example, "id": "other"}], list(example["weights"])
    inspector = TokenInspector(two, tiny_tokenizer, threshold=0.0, editable=True)
    n = len(before)
    inspector.edits = [[0, 0, n, 0.5], [0, n - 3, n, -2.0], [1, 0, n, 9.0]]
    weights = inspector.example["weights"]
    first = example["kinds"].index(Kind.TAG)
    assert weights == [0.0] * first + [0.5] * (n - 3 - first) + [-2.0] * 3
    inspector.edits = inspector.edits[:-2]
    assert inspector.example["weights"][-3:] == [0.5] * 3
    inspector.edits = []
    assert inspector.example["weights"] == before == example["weights"]


def test_an_edited_example_trains_as_it_is(row, tmp_path):
    """A data set of it gives the trainer the ids, the draws and the weights that were set."""
    model, tokenizer = bt.load_model("tiny", qlora=True)
    (example,) = prepare([row], tokenizer)
    inspector = TokenInspector(example, tokenizer, editable=True)
    n = len(example["weights"])
    inspector.edits = [[0, n - 3, n, -2.0]]
    edited = datasets.Dataset.from_list([inspector.example])
    config = bt.BTSFTConfig(str(tmp_path))
    trainer = bt.BTSFTTrainer(model, config, edited, processing_class=tokenizer)
    batch = trainer.data_collator([trainer.train_dataset[0]])
    assert batch["weights"][0].tolist() == inspector.example["weights"] != example["weights"]
    assert batch["input_ids"][0].tolist() == example["input_ids"]
    assert trainer.blur(batch)[0].tolist() == inspector.blurred.tolist()


# ---------------------------------------------------------------------------------------------- HTML


def test_the_bundle_has_a_widget_words_and_html(looked):
    """Trap 14: ipywidgets 7 would show the widget alone if `_ipython_display_` were there."""
    data, _ = looked._repr_mimebundle_()
    assert set(data) == {"text/plain", "text/html", "application/vnd.jupyter.widget-view+json"}
    assert data["text/plain"] == repr(looked) and looked._ipython_display_ is None
    static, script = split(data["text/html"])
    assert "row" in static and '"threshold":0.5' in script and '"beta":2.0' in script


def held(html: str) -> dict:
    """What the script of a page is given."""
    return json.loads(
        split(html)[1].rpartition("\nmount(")[2].split(", ", 1)[1].removesuffix(");\n")
    )


def test_a_cell_holds_what_fits_and_says_what_does_not(tiny_tokenizer, example):
    """One of a large set; no script but a count for an example that is too long; a page has all."""
    many = [{**example, "id": f"n{i}"} for i in range(300)]
    inspector = TokenInspector(many, tiny_tokenizer, index=100)
    state = held(inspector._repr_mimebundle_()[0]["text/html"])
    assert [one["id"] for one in state["examples"]] == ["n100"] and state["count"] == 300
    assert len(held(inspector.to_html())["examples"]) == 300
    state = held(
        TokenInspector(many[:20], tiny_tokenizer, index=7)._repr_mimebundle_()[0]["text/html"]
    )
    assert len(state["examples"]) == 20 and state["index"] == 7 and state["first"] == 0
    long = {name: list(example[name]) * 200 for name in ("input_ids", "kinds", "weights")} | {
        "id": "long",
        "tags": [],
    }
    inspector = TokenInspector(long, tiny_tokenizer)
    html = inspector._repr_mimebundle_()[0]["text/html"]
    n = len(long["kinds"])
    assert (
        "<script" not in html
        and f"the first 4,000 of {n:,} tokens; to_html(path) writes a page with all" in html
    )
    static, _ = split(inspector.to_html())
    assert static.count("<small>") == n


def test_a_page_has_the_edited_weights_and_the_draws_of_its_epochs(tiny_tokenizer, example):
    """Those of each example, whichever is shown; the epoch that it was made in is among the epochs."""
    two = [example, {**example, "id": "other"}]
    inspector = TokenInspector(two, tiny_tokenizer, epoch=9, threshold=1 / 3)
    at = example["kinds"].index(Kind.THINK)
    inspector.edits = [[1, at, at + 1, -1.0]]
    first, second = held(inspector.to_html())["examples"]
    assert first["values"]["weight"] == example["weights"] and second["values"]["weight"][at] == -1
    assert list(second["draws"]) == ["token", "word", "sentence", "thought"]
    assert list(second["draws"]["word"]) == ["0", "1", "2", "3", "4", "9"]
    inspector.index, inspector.unit = 1, "word"
    assert [u < 1 / 3 for u in second["draws"]["word"]["9"]] == (inspector.draws < 1 / 3).tolist()


def test_a_page_is_written(tmp_path, looked):
    """Whole, with a title, and the same view in it."""
    html = looked.to_html(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and html in page and "<title>row</title>" in page


@pytest.mark.parametrize("view", VIEWS)
def test_the_static_view_says_all_in_words(looked, view):
    """Each token's text, kind and number; no script, no style sheet, no address."""
    looked.view = view
    static, _ = split(looked.to_html())
    page = Page(static)
    assert page.tags <= ALLOWED_TAGS and page.attributes <= {"style", "title"} and not page.other
    assert len(page.titles) == len(looked.tokens)
    kinds = [Kind(kind).name.lower() for kind in looked.example["kinds"]]
    number = "" if view == "kind" else f", {view}"
    assert all(
        re.match(rf"{i}: {kind}(, blurred)?{number}", page.titles[i])
        for i, kind in enumerate(kinds)
    )
    assert sum(", blurred" in title for title in page.titles) == looked.blurred.sum()
    for word in ("<script", "http", "url(", "src=", "href=", "<link", "<style", "@import", "<img"):
        assert word not in static.lower()


def test_hostile_text_stays_text(tiny_tokenizer, example, scores):
    """As a token, as an id, as an alternative: no tag, attribute or comment comes of it, and all of it is there."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    payloads = [text for text in PAYLOADS.values() if text.strip()]
    tokenizer.add_tokens(payloads)
    ids = tokenizer.convert_tokens_to_ids(payloads)
    n = len(ids)
    hostile = {"id": " ".join(payloads), "input_ids": ids, "kinds": [2] * n, "weights": [1.0] * n}
    score = {name: np.resize(value, n) for name, value in scores[0].items()}
    score |= {"tags": np.zeros((2, n)), "top_ids": np.resize(ids, (n, 5))}
    score |= {"top_log_probs": np.zeros((n, 5)), "expected_reward": 0.5}
    inspector = TokenInspector(hostile, tokenizer, score=score, view="gradient")
    static, script = split(inspector.to_html())
    page = Page(static)
    assert page.tags <= ALLOWED_TAGS and page.attributes <= {"style", "title"} and not page.other
    words = "".join(page.words)
    for text in inspector.data["texts"]:
        assert text in words or not text.strip()
    state = script.rpartition("\nmount(")[2]
    assert "<" not in state and "\u2028" not in state
    assert held(inspector.to_html())["examples"][0]["id"] == " ".join(payloads)


@given(st.text(max_size=20))
def test_any_id_is_text(tiny_tokenizer, example, name):
    """Whatever a data set calls its rows."""
    page = Page(split(TokenInspector({**example, "id": name}, tiny_tokenizer).to_html())[0])
    assert page.tags <= ALLOWED_TAGS and page.attributes <= {"style", "title"} and not page.other


def test_what_cannot_be_seen_has_a_mark(tiny_tokenizer):
    """Bidi controls, which would turn the text of others around, line ends, and what has no width."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.add_tokens(["a\u202eb", "c\u200bd", "e\x00f"])
    ids = tokenizer.convert_tokens_to_ids(["a\u202eb", "c\u200bd", "e\x00f"])
    assert visible_texts(tokenizer, ids)[0] == [
        "a\u27e8U+202E\u27e9b",
        "c\u27e8U+200B\u27e9d",
        "e\u27e8U+0000\u27e9f",
    ]


# ---------------------------------------------------------------------------------------------- score


def test_rank_and_alternatives_are_those_of_the_logits(tiny_tokenizer, example, scores):
    """The plain way, token by token; a KL needs adapters."""
    import torch

    model, _ = bt.load_model("tiny")
    score = bt.score(model, tiny_tokenizer, [example])[0]
    with torch.no_grad():
        logits = model(torch.tensor([example["input_ids"]])).logits[0]
    for i in (1, 5, len(example["input_ids"]) - 1):
        order = logits[i - 1].argsort(descending=True).tolist()
        assert order[score["rank"][i] - 1] == example["input_ids"][i]
        assert score["top_ids"][i].tolist() == order[:5]
        top = logits[i - 1].log_softmax(-1)[order[:5]]
        np.testing.assert_allclose(score["top_log_probs"][i], top, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="kl=True needs a reference"):
        bt.score(model, tiny_tokenizer, [example], kl=True)


def test_the_pull_is_that_of_the_whole_reward(tiny_tokenizer):
    """R of two turns is a product: the pull on one has the other as a factor. Against numbers, by small steps."""
    import torch

    from btsft_nb.objective.format_reward import expected_format_reward, find_completions
    from btsft_nb.objective.full_logits import reference_head

    talk = ["a", "<think>b</think>\n\nc", "d", "<think>e f</think>\n\ng"]
    row = {
        "messages": [
            {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(talk)
        ]
    }
    (example,) = prepare([row], tiny_tokenizer)
    model, _ = bt.load_model("tiny")
    score, ids = bt.score(model, tiny_tokenizer, [example])[0], bt.tag_ids(tiny_tokenizer)
    batch = bt.Collator(0)([example])
    completions = find_completions(batch, ids)
    assert len(completions) == 2
    with torch.no_grad():
        logits = model(batch["input_ids"]).logits[0, :-1]
    z = torch.zeros(3, 1, len(logits) + 1, dtype=torch.float64)
    z[:, 0, 1:] = reference_head(logits, batch["input_ids"][0, 1:], ids).log_tags
    at, step, slopes = completions[1].start, 1e-4, []
    for k in range(3):
        moved = [z.clone() for _ in range(2)]
        moved[0][k, 0, at] += step
        moved[1][k, 0, at] -= step
        up, down = (
            expected_format_reward(one.log_softmax(0), completions, 1).item() for one in moved
        )
        slopes.append((up - down) / (2 * step))
    assert score["format_pull"][at] == pytest.approx(sum(map(abs, slopes)) / 2, rel=1e-3)
    assert score["expected_reward"] == pytest.approx(
        expected_format_reward(z, completions, 1).item(), rel=1e-6
    )


def test_kl_to_the_model_without_adapters(scores, example):
    """Against the alternatives' own sum where those hold nearly all: KL(p_ref || p), not the other way round."""
    before, after = scores
    for i in range(1, len(example["input_ids"])):
        ref, new = (
            np.exp(before["top_log_probs"][i]),
            dict(zip(after["top_ids"][i].tolist(), after["top_log_probs"][i], strict=True)),
        )
        if ref.sum() < 0.9999 or not set(before["top_ids"][i].tolist()) <= set(new):
            continue
        log_new = np.array([new[token] for token in before["top_ids"][i].tolist()])
        assert after["kl"][i] == pytest.approx(
            (ref * (before["top_log_probs"][i] - log_new)).sum(), abs=2e-3
        )
        break
    else:
        pytest.fail("no position to compare")
