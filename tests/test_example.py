"""The method on one page is the trainer's: the same draws, loss and gradients. And it runs as it says."""

import copy
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import TrainerCallback

import btsft_nb as bt

SCRIPT = Path(__file__).parents[1] / "examples" / "blurred_thoughts.py"
DIALS = {"threshold": 0.5, "anchor": 0.7, "beta": 0.6}


@pytest.fixture(scope="module")
def page():
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("blurred_thoughts", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Gradients(TrainerCallback):
    """Those of the last step."""

    def on_pre_optimizer_step(self, *_, model, **__):
        self.values = [p.grad.clone() for p in model.parameters()]


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """A copy some steps away, so that an anchor at the original costs something."""
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p += 0.2 * p.std() * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model


@pytest.mark.parametrize("is_opened", [False, True])
@pytest.mark.parametrize("seed", [0, 2**31])
def test_draws_loss_and_gradients_are_the_trainers(page, tmp_path, seed, is_opened):
    """One step in float64, also where the prompt opens the thought."""
    model, tokenizer = bt.load_model("tiny")
    if is_opened:
        prompt = "<|im_start|>assistant\n' }}{%- endif %}"
        tokenizer.chat_template = tokenizer.chat_template.replace(
            prompt, prompt.replace("\n'", "\n<think>\n'")
        )
    reference = model.double()
    model = moved(reference)
    tags = [*bt.tag_ids(tokenizer)]
    question, completion = page.EXAMPLE["question"], page.EXAMPLE["completion"]
    examples = bt.prepare([{"prompt": question, "completion": completion}], tokenizer)
    example = page.EXAMPLE | {"id": examples[0]["id"]}

    ids, kinds = page.tokenize(tokenizer, example, tags)
    assert ids.tolist() == examples[0]["input_ids"] and kinds.tolist() == examples[0]["kinds"]
    blurred = page.draw_blur(kinds, example["id"], seed, 0, DIALS["threshold"])
    with torch.no_grad():
        ref_logits = reference(ids[None]).logits[0]
    parts = page.objective(
        model(ids[None]).logits[0], ref_logits, ids, kinds, blurred, tags, DIALS["anchor"], DIALS["beta"]
    )  # fmt: skip
    sum(parts.values()).backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    assert all(value > 1e-3 for value in parts.values()) and blurred.any()

    settings = dict(max_steps=1, logging_steps=1, max_grad_norm=0, report_to="none", bf16=False)
    config = bt.BTSFTConfig(
        str(tmp_path), seed=seed, use_cpu=True, gradient_checkpointing=False, **settings, **DIALS
    )
    callback = Gradients()
    trainer = bt.BTSFTTrainer(
        model, config, examples, processing_class=tokenizer, ref_model=reference, callbacks=[callback]
    )  # fmt: skip
    batch = trainer.data_collator([examples[0]])
    assert torch.equal(trainer.blur(batch)[0], blurred)
    model.zero_grad()
    trainer.train()
    (log,) = [log for log in trainer.state.log_history if "loss_nll" in log]
    for part, value in parts.items():
        assert log[f"loss_{part}"] == pytest.approx(value.item(), rel=1e-5, abs=1e-6)
    # both make some of it in float32
    for mine, its in zip(gradients, callback.values, strict=True):
        assert (mine - its).norm() <= 1e-5 * its.norm() > 0


def test_the_script_runs_and_learns_the_format():
    run = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, check=True)
    steps = re.findall(
        r"loss ([\d.]+) = nll ([\d.]+)  anchor ([\d.]+)  format ([\d.]+)", run.stdout
    )
    first, *_, last = [[float(value) for value in step] for step in steps]
    assert len(steps) == 10 and first[3] > 0.1 > last[3]
    assert first[2] == 0 < last[2], "the reference is the model before its first step"


def test_it_is_one_page_without_the_package():
    text = SCRIPT.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert not re.search(r"^\s*(import|from) btsft_nb", text, re.MULTILINE)
