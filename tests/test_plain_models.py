"""A model whose tokenizer has no think tags is sampled, scored, compared and inspected as it is."""

from itertools import chain

import numpy as np
import pytest
import torch
from test_tag_rows import plain_model

import btsft_nb as bt

ROWS = [{"question": f"{i}+1?", "answer": f"<think>{i} + 1</think>{i + 1}"} for i in range(3)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(plain_model(tmp_path_factory.mktemp("base") / "plain"))


def test_it_is_sampled_and_compared_by_name(folder, tmp_path):
    """Its vocabulary is not touched, and the format is read from text."""
    model, tokenizer = bt.load_model(folder)
    before = len(tokenizer)
    (record,) = bt.sample(model, tokenizer, ["2+3?"], n=1, max_new_tokens=4, progress=False)
    assert record["tokens"] <= 4 and len(tokenizer) == before
    comparison = bt.compare([folder], ROWS, tmp_path / "report", n=2, max_new_tokens=4)
    assert comparison.summaries["plain"]["metrics"]["compliance"]["value"] == 0
    with pytest.raises(FileNotFoundError, match=r"no/such: neither a folder nor on the Hub"):
        bt.compare(["no/such"], ROWS, tmp_path / "other")


def test_a_tag_scores_as_the_sum_of_its_pieces(folder):
    """By hand: the same text, tokenized without tags, through the model's own forward."""
    model, tokenizer = bt.load_model(folder)
    plain = bt.load_tokenizer(folder)
    examples = bt.prepare(ROWS, tokenizer, print_report=False)
    for example, score in zip(examples, bt.score(model, tokenizer, examples), strict=True):
        runs = [
            plain.encode(tokenizer.decode([token]), add_special_tokens=False)
            if token in bt.tag_ids(tokenizer)
            else [token]
            for token in example["input_ids"]
        ]
        assert max(map(len, runs)) > 1
        spelled = torch.tensor([list(chain(*runs))])
        with torch.no_grad():
            logits = model(input_ids=spelled).logits[0, :-1].double()
        own = logits.log_softmax(-1).gather(1, spelled[0, 1:, None])[:, 0].numpy()
        ends = np.cumsum([len(run) for run in runs])
        own = np.concatenate([[0.0], own])
        want = [own[end - len(run) : end].sum() for end, run in zip(ends, runs, strict=True)]
        np.testing.assert_allclose(score["log_probs"], want, atol=1e-5)
        # R is the probability that both stand where they stand
        at = [example["input_ids"].index(tag) for tag in bt.tag_ids(tokenizer)]
        reward = np.exp(np.array(want)[at].sum())
        assert score["expected_reward"] == pytest.approx(reward, rel=1e-3)
        assert score["tags"][0, at[0]] == pytest.approx(np.exp(want[at[0]]), rel=1e-4)
        elsewhere = score["tags"].copy()
        elsewhere[[0, 1], at] = 0
        assert elsewhere.max() < 1e-300


def test_it_is_inspected(folder):
    model, tokenizer = bt.load_model(folder)
    examples = bt.prepare(ROWS, tokenizer, print_report=False)
    scores = bt.score(model, tokenizer, examples)
    inspector = bt.TokenInspector(examples, tokenizer, score=scores, view="gradient", beta=1.0)
    assert np.isfinite(inspector.values()).all()


def test_tokens_of_another_tokenizer_are_named(folder):
    model, tokenizer = bt.load_model(folder)
    (example,) = bt.prepare(ROWS[:1], tokenizer, print_report=False).to_list()
    example["input_ids"][1] = 100_000
    with pytest.raises(
        ValueError, match=r"example rows#0 is of another tokenizer than the model's"
    ):
        bt.score(model, tokenizer, [example])
