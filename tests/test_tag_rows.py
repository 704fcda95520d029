"""The rows of new think tags start from the data, so that both dials have a gradient from the first steps."""

import logging

import numpy as np
import pytest
import torch
from test_architectures import FAMILIES, family  # noqa: F401, a fixture

import btsft_nb as bt
from btsft_nb.models.config import ModelConfig

LACKS_TAGS = [name for name, (*_, lacks_tags) in FAMILIES.items() if lacks_tags]
ROWS = bt.load_rows("tiny/teacher")[:168]


def tag_probabilities(model, tokenizer, examples):
    """The mean probability of the open and of the close tag where they stand."""
    scores = bt.score(model, tokenizer, examples)
    means = []
    for tag in bt.tag_ids(tokenizer):
        log_probs = [
            score["log_probs"][np.equal(example["input_ids"], tag)]
            for example, score in zip(examples, scores, strict=True)
        ]
        means.append(np.exp(np.concatenate(log_probs)).mean())
    return means


def trainer_of(folder, settings, out, **config):
    model, tokenizer = bt.load_model(ModelConfig(str(folder), **settings))
    examples = bt.prepare(ROWS, tokenizer, print_report=False)
    anchor = 0.0 if settings.get("method") == "full" else 1.0
    config = bt.BTSFTConfig(
        str(out), 8, anchor=anchor, threshold=0.5, learning_rate=2e-4, disable_tqdm=True, **config
    )
    training = examples.select(range(160))
    trainer = bt.BTSFTTrainer(model, config, training, processing_class=tokenizer)
    return trainer, examples.select(range(160, 168))


@pytest.mark.parametrize("family", LACKS_TAGS, indirect=True)
def test_after_twenty_steps_the_tags_are_expected(family, tmp_path):  # noqa: F811
    folder, settings, _ = family
    trainer, held_out = trainer_of(folder, settings, tmp_path / "run", max_steps=20)
    tokenizer = trainer.processing_class
    before = tag_probabilities(trainer.model, tokenizer, held_out)
    trainer.train()
    after = tag_probabilities(trainer.model, tokenizer, held_out)
    # The weights are random. What some of these make of a context tells a thought's end from its middle too little, so
    # that the loss takes the tags back to what is likely there; a higher learning rate for their rows does not help.
    lowest = 0.2 if folder.name in ("gpt-neo", "opt", "gemma2") else 0.5
    assert min(after) >= lowest and max(before) < 0.1


@pytest.mark.parametrize("family", ["smollm", "llama"], indirect=True)
def test_the_start_says_what_it_did_and_leaves_the_reference(family, tmp_path, caplog):  # noqa: F811
    """Tied and untied; the model under the adapters gives the same logits, and other rows stay as they were."""
    folder, settings, _ = family
    trainer, held_out = trainer_of(folder, settings, tmp_path / "run", max_steps=1)
    model = trainer.model
    ids = torch.tensor([held_out[0]["input_ids"]])
    with torch.no_grad(), model.disable_adapter():
        want = model(input_ids=ids).logits
    with caplog.at_level(logging.WARNING, "btsft_nb.training.tag_rows"):
        trainer.train()
    (line,) = [r.message for r in caplog.records if r.name == "btsft_nb.training.tag_rows"]
    assert line.startswith("the rows of new tags start from 16 examples; <think> costs ")
    with torch.no_grad(), model.eval().disable_adapter():
        assert torch.equal(model(input_ids=ids).logits, want)
    # trained rows are not started again
    caplog.clear()
    trainer.train()
    assert not [r for r in caplog.records if r.name == "btsft_nb.training.tag_rows"]


@pytest.mark.parametrize("family", ["smollm"], indirect=True)
def test_a_resumed_run_goes_on_with_its_rows(family, tmp_path):  # noqa: F811
    folder, settings, _ = family
    saves = dict(max_steps=4, save_strategy="steps", save_steps=2)
    whole, _ = trainer_of(folder, settings, tmp_path / "run", **saves)
    whole.train()
    again, _ = trainer_of(folder, settings, tmp_path / "run", **saves)
    again.train(str(tmp_path / "run" / "checkpoint-2"))
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, again.model.get_parameter(name)), name


def test_a_model_that_knows_the_tags_is_left_alone(tmp_path, caplog):
    model, tokenizer = bt.load_model("tiny", qlora=True)
    examples = bt.prepare(ROWS[:8], tokenizer, print_report=False)
    config = bt.BTSFTConfig(str(tmp_path), max_steps=1, disable_tqdm=True)
    bt.BTSFTTrainer(model, config, examples, processing_class=tokenizer).train()
    assert "new tags" not in caplog.text


def test_data_without_tags_give_no_direction(tmp_path, caplog):
    """The rows start as their pieces then, and the line says so."""
    folder = plain_model(tmp_path / "plain")
    model, tokenizer = bt.load_model(str(folder), qlora=True)
    rows = [{"question": f"{i}+1?", "answer": str(i + 1)} for i in range(8)]
    examples = bt.prepare(rows, tokenizer, print_report=False)
    config = bt.BTSFTConfig(str(tmp_path / "run"), max_steps=1, disable_tqdm=True)
    bt.BTSFTTrainer(model, config, examples, processing_class=tokenizer).train()
    assert "the rows of new tags start from 8 examples; none has a tag" in caplog.text


def plain_model(folder):
    """A small Llama whose tokenizer has no think tags."""
    from test_architectures import SMALL, without_tags
    from transformers import AutoModelForCausalLM, LlamaConfig

    tokenizer = without_tags(bt.load_tokenizer("tiny"))
    torch.manual_seed(0)
    config = LlamaConfig(**SMALL, vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
