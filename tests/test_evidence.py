"""The evidence: its controls are what they are called, and what the project says of it is what was measured."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import DataCollatorForLanguageModeling, TrainingArguments

import btsft_nb as bt

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))
import evidence  # noqa: E402
import two_steps  # noqa: E402


def gradient(trainer, batch) -> torch.Tensor:
    """Of all that trains, after one micro-batch."""
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, batch, num_items_in_batch=COUNTS).backward()
    return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad])


COUNTS = torch.tensor([300.0, 8.0, 600.0])


@pytest.fixture(scope="module")
def adapted():
    """LoRA layers that do something already, and eight rows without tags in some."""
    model, tokenizer = bt.load_model("tiny", qlora=True)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = 0.3 * torch.randn_like(parameter)
    return model, tokenizer, bt.prepare(bt.tiny.rows("messy", 8), tokenizer)


def test_no_dial_of_the_reference_reaches_its_gradient(adapted, tmp_path):
    """Threshold 0 or 0.8, beta 0 or 2: the same gradient, and the losses differ by a constant alone."""
    model, tokenizer, examples = adapted
    found = []
    for threshold, beta in ((0.0, 0.0), (0.8, 0.0), (0.8, 2.0)):
        data = evidence.as_published(examples, tokenizer, threshold, seed=0)
        blurred = sum(sum(a == -100 for a in row["labels"]) for row in data)
        collator = DataCollatorForLanguageModeling(tokenizer, mlm=False)
        settings = TrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
        trainer = evidence.Reference(
            model, settings, collator, data, processing_class=tokenizer, beta=beta
        )
        batch = next(iter(trainer.get_eval_dataloader(data)))
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        found.append(
            (blurred, loss.item(), [p.grad.clone() for p in model.parameters() if p.requires_grad])
        )
    (none, _, plain), (many, unblurred, same), (_, rewarded, again) = found
    assert many > none and rewarded > unblurred + 0.2
    for other in (same, again):
        assert all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))


def test_the_expectation_is_that_of_the_anchored_blur(adapted, tmp_path):
    """Its gradient is the mean over draws of the blurred one: nearer to the mean of 64 than to any of them."""
    model, tokenizer, examples = adapted
    dials = dict(threshold=0.5, anchor=1.0, beta=0.0, use_cpu=True, seed=0)
    trainers = [
        kind(model, bt.BTSFTConfig(str(tmp_path), **dials), examples, processing_class=tokenizer)
        for kind in (evidence.Expectation, bt.BTSFTTrainer)
    ]
    model.train()
    batch = trainers[1].data_collator([dict(example) for example in examples])
    thoughts = (batch["kinds"] == bt.Kind.THINK) & (batch["weights"] != 0)
    expected = gradient(trainers[0], batch | {"blurred": thoughts & False})
    torch.manual_seed(0)
    drawn = []
    for _ in range(32):  # with its opposite, so that each token is blurred in half of them
        blurred = thoughts & (torch.rand(thoughts.shape) < 0.5)
        drawn += [
            gradient(trainers[1], batch | {"blurred": mask})
            for mask in (blurred, thoughts & ~blurred)
        ]
    mean = torch.stack(drawn).mean(0)
    assert (mean - expected).norm() < 1e-4 * expected.norm()
    assert min((one - expected).norm() for one in drawn) > 0.003 * expected.norm()


def test_two_steps_are_right_and_held_out():
    """Each thought ends in the answer, and no test problem has the numbers of a training row."""
    rows = {name: two_steps.rows(name, 300) for name in ("pretrain", "teacher", "messy", "test")}
    for name in ("pretrain", "teacher"):
        for row in rows[name]:
            thought, answer = (
                row["messages"][1]["content"].removeprefix("<think>").split("</think>")
            )
            assert bt.tiny.way_of(thought) == row["way"] and bt.metrics.is_correct(
                answer, row["answer"]
            )
    assert sum("<think>" not in row["messages"][1]["content"] for row in rows["messy"]) == 120
    assert {row["way"] for row in rows["teacher"]} == {"split"}
    parts = re.compile(r"\d+|gets|gives|then|bags")
    numbers = {
        name: {tuple(parts.findall(row["messages"][0]["content"])) for row in rows[name]}
        for name in rows
    }
    assert not numbers["test"] & (numbers["pretrain"] | numbers["teacher"] | numbers["messy"])
    assert len(numbers["test"]) > 200


def test_the_interval_takes_seeds_and_problems_as_drawn():
    """Wide where seeds differ although problems do not, and where problems differ although seeds do not."""
    seeds, problems = np.linspace(0, 1, 5)[:, None], np.linspace(0, 1, 100)[None]
    by_seed, by_problem = (
        evidence.interval(array + np.zeros((5, 100))) for array in (seeds, problems)
    )
    assert [by_seed["value"], by_problem["value"]] == pytest.approx([0.5, 0.5])
    assert by_seed["high"] - by_seed["low"] == pytest.approx(
        2 * 1.96 * np.std(seeds) / 5**0.5, rel=0.1
    )
    assert by_problem["high"] - by_problem["low"] == pytest.approx(
        2 * 1.96 * np.std(problems) / 10, rel=0.1
    )


def test_every_arm_was_measured_with_five_seeds():
    """And stands in its interval; the arms of the file are those of the script."""
    found = bt.tiny.evidence()
    for family, arms in found["families"].items():
        assert list(arms) == [
            "before",
            *(n for n, arm in evidence.ARMS.items() if family in arm.families),
        ]
        for arm in arms.values():
            for metric, m in arm["metrics"].items():
                assert len(arm["seeds"][metric]) == 5
                assert m["low"] <= m["value"] <= m["high"]
                assert m["value"] == pytest.approx(np.mean(arm["seeds"][metric]), abs=5e-3)
        assert all(m["value"] == 0 for m in arms["plain SFT"]["difference"].values())
    assert (
        found["budget"]["max_steps"] == evidence.STEPS
        and found["made"]["command"] == "make evidence"
    )


def test_the_readme_says_what_was_measured():
    """Each row of its tables is an arm, each figure that arm's, in both families."""
    arms = {
        "before": "before", "plain SFT": "plain SFT", "blur 0.5 alone (anchor 0)": "blur 0.5",
        "threshold 0.2, anchor 1": "anchored 0.2", "threshold 0.5, anchor 1": "anchored 0.5",
        "threshold 0.8, anchor 1": "anchored 0.8", "the reference as published": "reference",
        "beta 0": "beta 0", "beta 0.5": "beta 0.5", "beta 2": "beta 2",
        "the reference as published, beta 2": "reference, beta 2",
    }  # fmt: skip
    families, readme = bt.tiny.evidence()["families"].values(), (ROOT / "README.md").read_text()
    claims = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in readme.splitlines()
        if "] |" in line
    ]
    claims = {name: cells for name, *cells in claims if re.match(r"\d\.\d\d \[", cells[0])}
    assert list(claims) == list(arms)
    for name, cells in claims.items():
        first = "unique thoughts" if list(arms).index(name) < 7 else "compliance"
        wanted = [
            "{value:.2f} [{low:.2f}, {high:.2f}]".format(**family[arms[name]]["metrics"][metric])
            for family in families
            for metric in (first, "accuracy")
        ]
        assert cells == wanted, name
