"""The curves that grow under a cell, beside other callbacks; the rest of the module is in test_faults.py."""

import pytest
from batching_worker import adapted_model, examples_of

import btsft_nb as bt


@pytest.mark.parametrize("first", [0, 1])
def test_curves_and_trackers_stand_in_any_order(tmp_path, capsys, monkeypatch, first):
    """A tracker logs before the first step, when curves after it in the list have not begun yet."""
    model, tokenizer = adapted_model()
    shown, examples = [], examples_of("messy", tokenizer)
    monkeypatch.setattr(
        "btsft_nb.views.live.display",
        lambda picture, display_id: shown.append(picture) or Cell(shown),
    )
    question = {"question": "Ann has 2 pens. How many pens?", "choices": ["2", "3"], "answer": "2"}
    callbacks = [bt.TrackChoices([question], tokenizer, every=1), bt.LiveCurves("run")]
    settings = dict(
        anchor=0,
        max_steps=2,
        logging_steps=1,
        save_strategy="no",
        per_device_train_batch_size=2,
        use_cpu=True,
    )
    config = bt.BTSFTConfig(str(tmp_path), **settings)
    order = callbacks[first:] + callbacks[:first]
    bt.BTSFTTrainer(model, config, examples, processing_class=tokenizer, callbacks=order).train()
    assert len(shown) >= 2 and all(picture.data.startswith(b"\x89PNG") for picture in shown)


class Cell:
    """A notebook's cell, which keeps what it shows."""

    def __init__(self, shown):
        self.update = shown.append
