"""Perplexity and bits per byte by kind, tagged blocks, and multiple choice, against plain arithmetic."""

import math

import numpy as np
import pytest

import btsft_nb as bt
from btsft_nb.evaluation.metrics import choose, log_prob_by_tag, nll_by_kind


@pytest.fixture(scope="module")
def scored():
    """Model's tokenizer, three examples and their scores."""
    model, tokenizer = bt.load_model("tiny")
    examples = list(bt.prepare(bt.load_rows("tiny/teacher")[:3], tokenizer))
    return tokenizer, examples, bt.score(model, tokenizer, examples)


def test_perplexity_and_bits_per_byte_by_hand(scored):
    """Sums over all examples; the end of turn counts in perplexity, and is no text."""
    tokenizer, examples, scores = scored
    rng = np.random.default_rng(0)
    blurred = [rng.random(len(e["input_ids"])) < 0.5 for e in examples]
    found = nll_by_kind(examples, scores, tokenizer, blurred)
    assert set(found) == {"tag", "think", "answer", "think, blurred", "think, not blurred"}
    kinds = np.concatenate([e["kinds"] for e in examples])
    nll = -np.concatenate([s["log_probs"] for s in scores])
    ids, mask = np.concatenate([e["input_ids"] for e in examples]), np.concatenate(blurred)
    think, answer = kinds == bt.Kind.THINK, kinds == bt.Kind.ANSWER
    wanted = {
        "think": think,
        "think, blurred": think & mask,
        "think, not blurred": think & ~mask,
        "answer": answer,
    }
    for name, tokens in wanted.items():
        text = tokenizer.decode(ids[tokens]).replace(tokenizer.eos_token, "")
        bits = (
            nll[tokens & (ids != tokenizer.eos_token_id)].sum() / math.log(2) / len(text.encode())
        )
        assert found[name]["perplexity"]["value"] == pytest.approx(
            math.exp(nll[tokens].mean()), rel=1e-5
        ), name
        assert found[name]["bits_per_byte"]["value"] == pytest.approx(bits, rel=1e-5), name
        assert (found[name]["tokens"], found[name]["bytes"]) == (
            tokens.sum(),
            len(text.encode()),
        ), name
        assert found[name]["perplexity"]["n"] == 3
    assert found["answer"]["tokens"] > (answer & (ids != tokenizer.eos_token_id)).sum()


def test_bytes_are_those_of_the_text(tokenizer):
    """However a tokenizer cuts characters; special tokens have none."""
    text = "It is 3\u20ac, \u4f60\u597d \U0001f600\U0001f600 na\u00efve \ufffd end."
    ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
    kinds = [int(bt.Kind.THINK)] * len(ids)
    example = {"input_ids": ids, "kinds": kinds, "weights": [1.0] * len(ids)}
    scores = [{"log_probs": np.full(len(ids), -1.0)}]
    found = nll_by_kind([example], scores, tokenizer)["think"]
    assert found["bytes"] == len(text.encode()) and found["tokens"] == len(ids)
    bits = (len(ids) - 1) / math.log(2) / len(text.encode())
    assert found["bits_per_byte"]["value"] == pytest.approx(bits)
    assert found["perplexity"]["value"] == pytest.approx(math.e)


def test_only_supervised_tokens_count(scored):
    """A weight of 0 takes a token out, a fraction or a negative weight does not; absent kinds are absent."""
    tokenizer, examples, scores = scored
    example = dict(examples[0])
    thought = np.flatnonzero(np.asarray(example["kinds"]) == bt.Kind.THINK)
    weights = np.zeros(len(example["input_ids"]))
    weights[thought[1:3]] = 0.5, -1
    found = nll_by_kind([example | {"weights": weights.tolist()}], scores[:1], tokenizer)
    assert set(found) == {"think"} and found["think"]["tokens"] == 2
    wanted = math.exp(-np.mean(scores[0]["log_probs"][thought[1:3]]))
    assert found["think"]["perplexity"]["value"] == pytest.approx(wanted, rel=1e-5)


def test_a_kind_of_special_tokens_has_no_bits_per_byte(scored):
    tokenizer, examples, scores = scored
    ends = np.asarray(examples[0]["input_ids"]) == tokenizer.eos_token_id
    found = nll_by_kind(
        [dict(examples[0]) | {"weights": ends.astype(float).tolist()}], scores[:1], tokenizer
    )
    assert found["answer"]["bits_per_byte"] is None and found["answer"]["bytes"] == 0


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
    tokenizer, examples, scores = scored
    with pytest.raises(
        ValueError, match=r"scores must have one for each of the 3 examples.*scores\[2\]"
    ):
        nll_by_kind(examples, scores[:2], tokenizer)
    shorter = [dict(scores[0]) | {"log_probs": scores[0]["log_probs"][:-1]}, *scores[1:]]
    with pytest.raises(ValueError, match=r"a value for each token; scores\[0\] does not fit"):
        log_prob_by_tag(examples, shorter)
    with pytest.raises(
        ValueError, match=r"blurred must have one for each of the 3 examples.*blurred\[[01]\]"
    ):
        nll_by_kind(examples, scores, tokenizer, [np.zeros(3, bool)])


@pytest.mark.parametrize(
    ("log_probs", "n_bytes", "chosen"),
    [
        ([-1, -2], [1, 1], (0, 0)),
        ([-3, -4], [3, 8], (0, 1)),
        ([-2, -2], [4, 4], (0, 0)),
        ([-math.inf, -9], [1, 1], (1, 1)),
        (np.array([-5.0, -1.0]), np.array([10, 1]), (1, 0)),
    ],
)
def test_choose(log_probs, n_bytes, chosen):
    """The likeliest, and the likeliest by the byte."""
    assert choose(log_probs, n_bytes) == {"raw": chosen[0], "normalised": chosen[1]}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: choose([], []), r"got log_probs=\[\], n_bytes=\[\]"),
        (lambda: choose([-1], [1, 2]), r"got log_probs=\[-1\], n_bytes=\[1, 2\]"),
        (lambda: choose([0.5], [1]), r"at most 0 .* got log_probs=\[0.5\]"),
        (lambda: choose([math.nan], [1]), r"at most 0 .* got log_probs=\[nan\]"),
        (lambda: choose([-1], [0]), r"above 0, got .* n_bytes=\[0\]"),
    ],
)
def test_no_choice_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()
