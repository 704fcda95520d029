"""Sampling and scoring on the embedded model."""

import copy

import numpy as np
import pytest
import torch

import btsft_nb as bt
from btsft_nb.losses import expected_format_reward, find_completions, tag_log_probs


@pytest.fixture(scope="module")
def tiny():
    return bt.load_model("tiny")


def test_a_sample_does_not_depend_on_its_batch(tiny):
    """Greedy completions of prompts of unequal length are the same alone and padded together, in prompt order."""
    problems = bt.load_rows("tiny/test")[:6]
    alone, together = (bt.sample(*tiny, problems, n=1, temperature=0, batch_size=size) for size in (1, 6))
    assert alone == together
    assert [record["prompt"] for record in together] == list(range(6))
    assert [record["question"] for record in together] == [row["messages"][-1]["content"] for row in problems]


def test_every_sample_of_every_prompt_is_there_once(tiny):
    records = bt.sample(*tiny, ["How many?", {"messages": [{"role": "user", "content": "Ann?"}]}], n=3, batch_size=4)
    assert [(record["prompt"], record["sample"]) for record in records] == [(p, k) for p in (0, 1) for k in (0, 1, 2)]


def test_a_prompt_that_opens_the_thought_is_told(tiny):
    """The record says so, and parsing takes it into account."""
    model, tokenizer = tiny
    opened = copy.deepcopy(tokenizer)
    opened.chat_template = tokenizer.chat_template.replace("assistant\n' }}", "assistant\n<think>' }}")
    problem = bt.load_rows("tiny/test")[:1]
    (record,) = bt.sample(model, opened, problem, n=1, temperature=0, max_new_tokens=96)
    assert record["prefilled"] and not record["text"].startswith("<think>")
    assert bt.metrics.parse(record["text"], prefilled=True).problem is None
    assert bt.metrics.parse(record["text"]).problem == "no open tag"


def test_a_malformed_prompt_is_named(tiny):
    with pytest.raises(bt.RowError, match=r"problems, row 1: field messages\[0\].role: unknown role 'narrator'"):
        rows = bt.Rows(["How many?", {"messages": [{"role": "narrator", "content": "x"}]}], "problems")
        bt.sample(*tiny, rows, n=1)


def test_scores_are_those_of_the_model(tiny):
    """Log-probabilities and tag probabilities by plain softmax in float64; the reward as in the objective."""
    model, tokenizer = tiny
    example = bt.prepare(bt.load_rows("tiny/messy")[:4], tokenizer)[1]
    (score,) = bt.score(model, tokenizer, [example])
    ids = torch.tensor([example["input_ids"]])
    with torch.no_grad():
        logits = model(ids).logits.double()
    log_probs = logits[0, :-1].log_softmax(-1)
    wanted = log_probs.gather(1, ids[0, 1:, None])[:, 0]
    np.testing.assert_allclose(score["log_probs"][1:], wanted, atol=1e-4)
    np.testing.assert_allclose(score["tags"][:, 1:], log_probs[:, list(bt.tag_ids(tokenizer))].T.exp(), atol=1e-5)
    kinds = torch.tensor([example["kinds"]])
    batch = {"input_ids": ids, "kinds": kinds, "weights": (kinds > 0).float(), "sequence": torch.zeros_like(ids)}
    completions = find_completions(batch, bt.tag_ids(tokenizer))
    reward = expected_format_reward(tag_log_probs(logits, bt.tag_ids(tokenizer)), completions, 1)
    assert score["expected_reward"] == pytest.approx(reward.item(), rel=1e-4)


def test_the_pull_of_the_format_is_the_gradient_of_the_reward(tiny):
    """Half the summed absolute gradient by open, close and all other logits, by autograd through the full logits."""
    model, tokenizer = tiny
    example = bt.prepare(bt.load_rows("tiny/messy")[:4], tokenizer)[1]
    assert "untagged" in example["flags"]
    noisy = copy.deepcopy(model)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    (score,) = bt.score(noisy, tokenizer, [example])
    ids, kinds, tags = torch.tensor([example["input_ids"]]), torch.tensor([example["kinds"]]), bt.tag_ids(tokenizer)
    with torch.no_grad():
        logits = noisy(ids).logits.double()
    logits.requires_grad_()
    batch = {"input_ids": ids, "kinds": kinds, "weights": (kinds > 0).float(), "sequence": torch.zeros_like(ids)}
    expected_format_reward(tag_log_probs(logits, tags), find_completions(batch, tags), 1).sum().backward()
    gradient = logits.grad[0, :-1]
    rest = gradient.sum(-1) - gradient[:, tags[0]] - gradient[:, tags[1]]
    pull = (gradient[:, tags[0]].abs() + gradient[:, tags[1]].abs() + rest.abs()) / 2
    assert pull.max() > 0
    np.testing.assert_allclose(score["format_pull"][1:], pull, rtol=1e-2, atol=float(pull.max()) * 1e-3)


def test_samples_are_of_the_models_own_distribution(tiny):
    """What a model's generation_config holds, as Hub models' do, changes nothing."""
    model, tokenizer = tiny
    problem = bt.load_rows("tiny/test")[:2]
    plain = bt.sample(model, tokenizer, problem, n=2)
    changed = copy.deepcopy(model)
    changed.generation_config.repetition_penalty = 50.0
    changed.generation_config.suppress_tokens = [bt.tag_ids(tokenizer)[0]]
    changed.generation_config.top_k = 1
    assert bt.sample(changed, tokenizer, problem, n=2) == plain
