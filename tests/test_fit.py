"""Prompts that are too long, in training and in sampling: what goes, what stays, what is counted."""

import copy

import pytest

import btsft_nb as bt
from btsft_nb import Kind
from btsft_nb.data.fit import PromptFrame

QUESTION = "Ann is seven. Ben is nine. Eva has 3 pens and Tom has 4. How many pens are there in all of the boxes?"


@pytest.fixture(scope="module", params=["own", "qa"])
def framed(request, tiny_tokenizer):
    """A tokenizer with the template that it has, and with the question form."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    if request.param == "qa":
        bt.use_template(tokenizer, "qa")
    return tokenizer


def test_a_prompt_is_cut_alike_for_training_and_for_sampling(framed):
    """The first of its text goes; the template before and after it stays, and so do answer, weights and kinds."""
    rows, renderer = [{"Question": QUESTION, "Answer": "7."}], bt.Renderer(framed)
    whole = bt.prepare(rows, framed, 1024)[0]
    ids, prompt = whole["input_ids"], whole["kinds"].count(Kind.PROMPT)
    for cut in (1, 7):
        examples = bt.prepare(rows, framed, len(ids) - cut, too_long="shorten_prompt")
        short = examples[0]
        assert examples.report.changed == {"prompt shortened": [0]}
        head = framed.decode(ids).index(QUESTION)
        before = next(i for i in range(len(ids)) if len(framed.decode(ids[: i + 1])) > head)
        assert short["input_ids"] == ids[:before] + ids[before + cut :]
        assert short["weights"] == whole["weights"][cut:] and short["kinds"] == whole["kinds"][cut:]
        assert short["input_ids"][: prompt - cut] == PromptFrame(renderer).shorten(
            ids[:prompt], prompt - cut
        )


def test_what_has_no_text_left_is_dropped_and_counted(framed):
    """An answer alone may be too long; it is never cut, nor trained without its question."""
    rows = [
        {"Question": "How many pens?", "Answer": "One and two and three and four."},
        {"Question": "A?", "Answer": "4."},
    ]
    whole = bt.prepare(rows, framed, 1024)
    limit = len(whole[1]["input_ids"])
    kept = bt.prepare(rows, framed, limit, too_long="shorten_prompt")
    assert kept.report.dropped == {f"longer than max_length={limit}": [0]} and kept[0] == whole[1]


def test_formatted_text_is_refused(tiny_tokenizer):
    """No template tells what of it to keep."""
    with pytest.raises(ValueError, match="shorten_prompt with response_marker: no template says"):
        bt.prepare(
            [{"text": "Q: a A: b"}],
            tiny_tokenizer,
            9,
            too_long="shorten_prompt",
            response_marker="A:",
        )
