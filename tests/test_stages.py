"""The stages of a run: the reference's own file, data prepared as the settings say, and what a plan promises."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import yaml
from browser import ROOT
from datasets import Dataset, load_dataset
from test_settings import REFERENCE

import btsft_nb as bt
from btsft_nb.cli.planning import _course
from btsft_nb.cli.stages import prepare_data


def make_hub_cache(folder, name: str, files) -> None:
    """A model of the Hub, as if it had been loaded before."""
    repository = folder / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(files, repository / "snapshots" / ("0" * 40))


def test_the_configuration_of_the_reference_runs_as_it_is(tmp_path):
    """Its checkpoint without a tokenizer, its tokenizer without a template, its data set as `datasets` saves one."""
    model, tokenizer = bt.load_model("tiny")
    model.save_pretrained(tmp_path / "path" / "to" / "checkpoint")
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "gpt2")
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    make_hub_cache(tmp_path / "hub", "gpt2", tmp_path / "gpt2")
    rows = [{"messages": row["messages"]} for row in bt.load_rows("tiny/teacher")[:24]]
    Dataset.from_list(rows).save_to_disk(tmp_path / "path" / "to" / "dataset")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "default.yaml").write_text(REFERENCE)
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_CACHE": str(tmp_path / "hub"),
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, "-m", "btsft_nb", "--config", "config/default.yaml"]
    shutil.rmtree(tmp_path / "gpt2")
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "bf_beta is beta here" in done.stderr and "using chatml" in done.stderr
    run = tmp_path / "runs" / "checkpoint-dataset"
    written = (run / "settings.yaml").read_text()
    assert written.startswith("# from config/default.yaml\n") and "\nbeta: 0.05\n" in written
    config = json.loads((run / "training_config.json").read_text())
    assert (
        config["threshold"],
        config["learning_rate"],
        config["gradient_accumulation_steps"],
    ) == (0.3, 5e-5, 12)


@pytest.mark.parametrize(("count", "kept"), [(None, 30), (7, 7)])
def test_data_is_what_the_settings_say(tmp_path, tiny_tokenizer, count, kept):
    rows = bt.load_rows("tiny/teacher")
    files = {"train": list(rows[:30]), "held out": list(rows[30:40])}
    (tmp_path / "rows.json").write_text(json.dumps(files))
    data = str(tmp_path / "rows.json")
    settings = bt.read_settings(
        data=data, eval_data=data, eval_split="held out", examples=count, output_dir=tmp_path
    )
    examples, held_out = prepare_data(settings, tiny_tokenizer)
    assert (len(examples), len(held_out)) == (kept, 10)
    assert examples[0]["input_ids"] == bt.prepare(rows[:1], tiny_tokenizer)[0]["input_ids"]


@pytest.mark.parametrize(
    ("rows", "given", "said"),
    [
        ([{"q": "2+2?", "a": "4"}], {"format": {"question": "q", "answer": "a"}}, "4"),
        ([{"text": "Q: 2+2?\nA: 4"}], {"format": "text", "response_marker": "\nA:"}, " 4"),
    ],
    ids=["columns", "marker"],
)
def test_rows_of_any_layout_by_settings(tmp_path, tiny_tokenizer, rows, given, said):
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "run.yaml").write_text(
        yaml.safe_dump(given | {"data": str(tmp_path / "rows.json")})
    )
    examples, _ = prepare_data(
        bt.read_settings(tmp_path / "run.yaml", output_dir=tmp_path), tiny_tokenizer
    )
    trained = [
        token
        for token, weight in zip(
            *(examples[0][key] for key in ("input_ids", "weights")), strict=True
        )
        if weight
    ]
    assert tiny_tokenizer.decode(trained[:-1]) == said


def test_a_configuration_of_a_data_set_on_the_hub(tmp_path):
    """Offline, from the cache that an earlier download leaves; rows to train on, to evaluate and to ask."""
    (tmp_path / "rows").mkdir()
    for name, question in (("main", "3+4?"), ("other", "2+5?")):
        (tmp_path / "rows" / f"{name}.jsonl").write_text(
            json.dumps({"question": question, "answer": "7"}) + "\n"
        )
    configs = [{"config_name": n, "data_files": f"{n}.jsonl"} for n in ("main", "other")]
    (tmp_path / "rows" / "README.md").write_text(
        f"---\n{yaml.safe_dump({'configs': configs})}---\n"
    )
    cache = tmp_path / "cache"
    for name in ("main", "other"):
        load_dataset(str(tmp_path / "rows"), name, cache_dir=str(cache))
    (cache / "rows").rename(cache / "someone___rows")
    code = """
import sys
from pathlib import Path
import btsft_nb as bt
from btsft_nb.cli.stages import prepare_data
from btsft_nb.files import read_lines
given = dict(data="someone/rows", data_config="other", eval_data="someone/rows", eval_split="train", eval_config="main")
given |= dict(test="someone/rows", test_split="train", test_config="main", track_every=1, samples=1, max_new_tokens=1)
settings = bt.read_settings(model="tiny", output_dir=sys.argv[1], max_steps=1, eval_strategy="steps", **given)
tokenizer = bt.load_tokenizer("tiny")
print("texts", [tokenizer.decode(part[0]["input_ids"]) for part in prepare_data(settings, tokenizer)])
print(bt.finetune(settings).state.global_step, read_lines(Path(sys.argv[1], "samples.jsonl"))[0]["question"])
"""
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-1000:]
    texts = next(line for line in done.stdout.splitlines() if line.startswith("texts "))
    assert texts.index("2+5?") < texts.index("3+4?") and "1 3+4?" in done.stdout


def test_the_seed_reaches_the_start_of_the_adapters(tmp_path):
    """Else runs with several seeds would share it. That of no settings is 42."""
    seed = 0
    given = dict(
        model="tiny",
        data="tiny/teacher",
        examples=4,
        max_steps=1,
        learning_rate=0.0,
        disable_tqdm=True,
    )
    trained = bt.finetune(bt.read_settings(output_dir=tmp_path, seed=seed, **given)).model
    wanted, _ = bt.load_model("tiny", qlora=True, seed=seed)
    names = [name for name, _ in wanted.named_parameters() if "lora_A" in name]
    assert names and all(
        torch.equal(trained.get_parameter(n), wanted.get_parameter(n)) for n in names
    )


def test_without_a_template_chatml_is_taken_and_said(tmp_path, caplog):
    tokenizer = bt.load_tokenizer("tiny")
    own, tokenizer.chat_template = tokenizer.chat_template, None
    settings = bt.read_settings(data="tiny/teacher", examples=2, output_dir=tmp_path)
    prepare_data(settings, tokenizer)
    assert "no chat template: using chatml" in caplog.text
    assert tokenizer.chat_template and tokenizer.chat_template != own


@pytest.mark.parametrize(
    ("given", "steps"),
    [
        ({}, 3 * 3),
        ({"num_train_epochs": 1.5}, 5),
        ({"max_steps": 4}, 4),
        ({"gradient_accumulation_steps": 2}, 3 * 2),
    ],
    ids=["epochs", "part", "steps", "accumulated"],
)
def test_a_plan_has_the_steps_of_the_run(tmp_path, loaded, given, steps):
    """As many as Trainer makes of 10 examples in batches of 4."""
    model, tokenizer, examples = loaded
    config = bt.BTSFTConfig(
        tmp_path, per_device_train_batch_size=4, threshold=0, learning_rate=0.0,
        save_strategy="no", disable_tqdm=True, **given,
    )  # fmt: skip
    lengths = np.array([len(ids) for ids in examples["input_ids"]])
    assert _course(config, lengths, 1.0)["steps"].startswith(f"{steps},")
    trainer = bt.BTSFTTrainer(model, config, examples, processing_class=tokenizer)
    trainer.train()
    assert trainer.state.global_step == steps


@pytest.fixture(scope="module")
def loaded():
    model, tokenizer = bt.load_model("tiny", qlora=True)
    return model, tokenizer, bt.prepare(bt.load_rows("tiny/teacher")[:10], tokenizer)


SMALL = dict(
    model="tiny", data="tiny/teacher", examples=8, per_device_train_batch_size=2, max_steps=3, learning_rate=1e-3,
    save_strategy="no", logging_steps=1, disable_tqdm=True,
)  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [{"lora_dropout": 0.1}, {"method": "full", "anchor": 0, "gradient_accumulation_steps": 3}],
    ids=["adapters", "full"],
)
def test_a_plan_leaves_no_trace(tmp_path, more):
    """Trained with a plan before and without: the same weights and losses, bit for bit; no folder."""
    settings = bt.read_settings(output_dir=tmp_path / "alone", **SMALL, **more)
    model = bt.finetune(settings).model
    settings = bt.read_settings(output_dir=tmp_path / "planned", **SMALL, **more)
    plan = bt.plan(settings)["this run"]
    assert not (tmp_path / "planned").exists()
    bt.finetune(settings)
    file = "model.safetensors" if "method" in more else "adapter_model.safetensors"
    alone, planned = ((tmp_path / name / file).read_bytes() for name in ("alone", "planned"))
    assert alone == planned
    losses = [
        bt.Run(tmp_path / name).history["loss"].dropna().tolist() for name in ("alone", "planned")
    ]
    assert losses[0] == losses[1]
    has_what_the_run_trains_and_takes(plan, model)


def has_what_the_run_trains_and_takes(plan, model):
    trainable = model.num_parameters(only_trainable=True)
    assert plan["parameters"] == f"{model.num_parameters():,}"
    assert plan["trainable"].startswith(f"{trainable:,} (")
    assert plan["steps"].startswith("3, ") and plan["examples"].startswith("8, ")
    memory = float(plan["peak memory"].removesuffix(" MiB").replace(",", ""))
    assert 100 < memory < 1e5
    speed = float(plan["tokens a second"].replace(",", ""))
    assert 10 < speed < 1e6 and plan["time"].startswith("0:0")


def test_what_does_not_fit_says_what_to_change_in_order(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(bt.BTSFTTrainer, "training_step", fail)
    plan = bt.plan(bt.read_settings(output_dir=tmp_path, **SMALL))["this run"]
    remedies = plan.filter(like="remedy").tolist()
    assert remedies[0].startswith("per_device_train_batch_size=1, ")
    assert remedies[1] == "gradient_checkpointing=true" and remedies[-1] == "a smaller model"
    assert plan["peak memory"].startswith("more than there is") and "time" not in plan


def test_a_run_folder_is_trained_on(tmp_path):
    """Its adapter goes on changing, on the base that it was trained on."""
    given = dict(
        data="tiny/teacher",
        examples=8,
        max_steps=2,
        save_strategy="no",
        learning_rate=1e-2,
        disable_tqdm=True,
    )
    bt.finetune(bt.read_settings(model="tiny", output_dir=tmp_path / "one", **given))
    settings = bt.read_settings(model=tmp_path / "one", output_dir=tmp_path / "two", **given)
    assert bt.plan(settings).loc["steps", "this run"].startswith("2,")
    bt.finetune(settings)
    one, two = (
        dict(bt.load_model(tmp_path / name)[0].named_parameters()) for name in ("one", "two")
    )
    assert any((one[name] != two[name]).any() for name in one if "lora_B" in name)
    assert bt.Run(tmp_path / "two").base["base_model"] == "tiny"


def test_full_weights_under_an_anchor_are_refused_before_the_model_is_loaded(monkeypatch):
    monkeypatch.setattr("btsft_nb.cli.stages.load", lambda settings: pytest.fail("loaded"))
    given = dict(model="tiny", data="tiny/teacher", method="full")
    for blur in ({"threshold": 0.5}, {"threshold": 0, "threshold_end": 0.5}):
        with pytest.raises(ValueError, match="the anchor no reference: set anchor=0"):
            bt.finetune(bt.read_settings(**given, **blur))
    with pytest.raises(pytest.fail.Exception, match="loaded"):
        bt.finetune(bt.read_settings(**given, threshold=0))
