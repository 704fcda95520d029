"""Tagged text followed while a model trains: figures, steps, signs of weights, and no trace in the training."""

from itertools import groupby

import numpy as np
import pytest
from batching_worker import adapted_model

import btsft_nb as bt
from btsft_nb.callbacks import TrackLogProbs

TAGS = {-1.0: "unwanted", 1.0: "wanted"}


def tagged(example: dict) -> dict:
    """Stretches of equal weight, where that is 1 or -1."""
    tags, at = [], 0
    for weight, run in groupby(example["weights"]):
        start, at = at, at + len(list(run))
        if weight in TAGS:
            tags.append({"tag": TAGS[weight], "start": start, "stop": at})
    return {"tags": tags}


@pytest.fixture(scope="module")
def examples(tiny_tokenizer):
    """16 problems whose thoughts begin with an unwanted sentence, and whose answers end in one that is wanted."""
    rows = bt.load_rows("tiny/teacher")[:16]
    for row in rows:
        before, stop, after = row["messages"][1]["content"].partition(". ")
        texts = {before + stop: -1, after: 0.5, " I took my time.": 1}
        blocks = [{"text": text, "weight": weight} for text, weight in texts.items()]
        row["messages"][1] = {"role": "assistant", "content": blocks}
    return bt.prepare(rows, tiny_tokenizer).map(tagged)


def train(folder, examples, tokenizer, callbacks, **settings):
    """A run without blur, anchor and format term."""
    defaults = dict(threshold=0, beta=0, max_steps=10, per_device_train_batch_size=8, learning_rate=1e-2)
    defaults |= dict(negative="unlikelihood", logging_steps=1, save_strategy="no", disable_tqdm=True, use_cpu=True)
    config = bt.BTSFTConfig(str(folder), **(defaults | settings))
    model, _ = adapted_model(noise=0)
    trainer = bt.BTSFTTrainer(model, config, examples, processing_class=tokenizer, callbacks=callbacks)
    trainer.train()
    return trainer


def sums(track: TrackLogProbs) -> dict[str, list[float]]:
    """Of each tag, the log-probability of all its text at each recorded step."""
    steps = sorted({record["step"] for record in track.records})
    return {
        tag: [sum(r["log_prob"] for r in track.records if (r["tag"], r["step"]) == (tag, step)) for step in steps]
        for tag in TAGS.values()
    }


def test_minus_one_makes_text_less_likely_and_plus_one_more(tmp_path, examples, tiny_tokenizer):
    """And the records are what `score` says before and after, of every stretch."""
    track = TrackLogProbs(examples, tiny_tokenizer, every=4)
    before = bt.score(adapted_model(noise=0)[0], tiny_tokenizer, examples)
    trainer = train(tmp_path, examples, tiny_tokenizer, [track])
    found = sums(track)
    assert found["unwanted"][-1] < found["unwanted"][0] - 10 and found["wanted"][-1] > found["wanted"][0] + 10
    after = bt.score(trainer.model, tiny_tokenizer, examples)
    assert sorted({record["step"] for record in track.records}) == [0, 4, 8, 10]
    for step, scores in ((0, before), (10, after)):
        expected = [
            (example["id"], t["tag"], one["log_probs"][t["start"] : t["stop"]])
            for example, one in zip(examples, scores, strict=True)
            for t in example["tags"]
        ]
        records = [r for r in track.records if r["step"] == step]
        assert [(r["id"], r["tag"], r["tokens"]) for r in records] == [(i, tag, len(x)) for i, tag, x in expected]
        assert np.allclose([r["log_prob"] for r in records], [x.sum() for *_, x in expected], atol=1e-4)


def test_the_training_is_the_same_without_it(tmp_path, examples, tiny_tokenizer):
    """Nor is the last step recorded twice where it is one of every so many."""
    track = TrackLogProbs(examples.select(range(2)), tiny_tokenizer, every=2)
    followed = train(tmp_path / "a", examples, tiny_tokenizer, [track], max_steps=4)
    alone = train(tmp_path / "b", examples, tiny_tokenizer, [], max_steps=4)
    losses = [[entry["loss"] for entry in run.state.log_history if "loss" in entry] for run in (followed, alone)]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert [record["step"] for record in track.records] == [step for step in (0, 2, 4) for _ in range(4)]


def test_nothing_to_follow_is_said(examples, tiny_tokenizer):
    with pytest.raises(ValueError, match="none of the examples has a tagged stretch"):
        TrackLogProbs([dict(examples[0], tags=[])], tiny_tokenizer)
    for every in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="every="):
            TrackLogProbs(examples, tiny_tokenizer, every=every)
