"""Perplexity by kind and tagged blocks, against plain arithmetic."""

import math

import numpy as np
import pytest

import btsft_nb as bt
from btsft_nb.evaluation.metrics import log_prob_by_tag, nll_by_kind


@pytest.fixture(scope="module")
def scored():
    """Three examples and their scores."""
    model, tokenizer = bt.load_model("tiny")
    examples = list(bt.prepare(bt.load_rows("tiny/teacher")[:3], tokenizer))
    return examples, bt.score(model, tokenizer, examples)


def test_perplexity_by_hand(scored):
    """Means over all tokens of all examples, thoughts also by whether they were blurred."""
    examples, scores = scored
    rng = np.random.default_rng(0)
    blurred = [rng.random(len(e["input_ids"])) < 0.5 for e in examples]
    found = nll_by_kind(examples, scores, blurred)
    kinds = np.concatenate([e["kinds"] for e in examples])
    nll = -np.concatenate([s["log_probs"] for s in scores])
    mask = np.concatenate(blurred)
    think = kinds == bt.Kind.THINK
    wanted = {
        "tag": kinds == bt.Kind.TAG,
        "think": think,
        "think, blurred": think & mask,
        "think, not blurred": think & ~mask,
        "answer": kinds == bt.Kind.ANSWER,
    }
    assert found.keys() == wanted.keys()
    for name, tokens in wanted.items():
        perplexity = math.exp(nll[tokens].mean())
        assert found[name]["perplexity"]["value"] == pytest.approx(perplexity, rel=1e-5), name
        assert found[name]["tokens"] == tokens.sum() and found[name]["perplexity"]["n"] == 3


def test_only_supervised_tokens_count(scored):
    """A weight of 0 takes a token out, a fraction or a negative weight does not; absent kinds are absent."""
    examples, scores = scored
    example = dict(examples[0])
    thought = np.flatnonzero(np.asarray(example["kinds"]) == bt.Kind.THINK)
    weights = np.zeros(len(example["input_ids"]))
    weights[thought[1:3]] = 0.5, -1
    found = nll_by_kind([example | {"weights": weights.tolist()}], scores[:1])
    assert set(found) == {"think"} and found["think"]["tokens"] == 2
    wanted = math.exp(-np.mean(scores[0]["log_probs"][thought[1:3]]))
    assert found["think"]["perplexity"]["value"] == pytest.approx(wanted, rel=1e-5)


def test_log_prob_of_tagged_blocks_by_hand():
    """Sums of blocks, means over blocks and over tokens; the first token of an example is left out."""
    blocks = {"a": [("x", 0, 3), ("y", 3, 5)], "b": [("x", 2, 3), ("z", 0, 1)]}
    examples = [
        {
            "id": i,
            "input_ids": ids,
            "tags": [
                dict(zip(("tag", "start", "stop"), block, strict=True)) for block in blocks[i]
            ],
        }
        for i, ids in (("a", [1] * 5), ("b", [1] * 3))
    ]
    scores = [
        {"log_probs": np.array([0, -1, -2, -3, -4.0])},
        {"log_probs": np.array([0, -5, -6.0])},
    ]
    found = log_prob_by_tag(examples, scores)
    assert set(found) == {"x", "y"}
    assert (
        found["x"]["per_block"]["value"] == (-3 - 6) / 2
        and found["x"]["per_token"]["value"] == (-3 - 6) / 3
    )
    assert (found["x"]["blocks"], found["x"]["tokens"], found["x"]["per_block"]["n"]) == (2, 3, 2)
    assert found["y"]["per_block"] == {"value": -7, "low": -7, "high": -7, "n": 1}


def test_scores_of_other_examples_are_refused(scored):
    examples, scores = scored
    with pytest.raises(ValueError, match=r"scores must have one for each of the 3 examples"):
        nll_by_kind(examples, scores[:2])
    shorter = [dict(scores[0]) | {"log_probs": scores[0]["log_probs"][:-1]}, *scores[1:]]
    with pytest.raises(ValueError, match=r"a value for each token"):
        log_prob_by_tag(examples, shorter)
    with pytest.raises(ValueError, match=r"blurred must have one for each of the 3 examples"):
        nll_by_kind(examples, scores, [np.zeros(3, bool)])
