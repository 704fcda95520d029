"""Settings: a file and key=value become the dataclasses, typed, named where they are wrong, and written down."""

import json
from collections import Counter
from dataclasses import fields

import pytest
import yaml

import btsft_nb as bt
from btsft_nb.cli.settings import describe
from btsft_nb.cli.settings_groups import DataConfig, EvaluationConfig
from btsft_nb.models.config import ModelConfig
from btsft_nb.training.config import BTSFTConfig

REFERENCE = """\
# Model configuration
model_name: "llama"
threshold: 0.3
bf_beta: 0.05

# Checkpoints
checkpoint: "path/to/checkpoint"
trainer_checkpoint: null
base_model_checkpoint: null

# Training parameters
tokenizer_name: "gpt2"
dataset_train: "path/to/dataset"
max_length: 512
batch_size: 32
accumulation_iter: 12
epochs: 1
lr: 5e-5
warmup_steps: 500
weight_decay: 0.01
"""


@pytest.fixture
def written(tmp_path):
    def write(text: str, name: str = "run.yaml"):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def test_a_key_belongs_to_one_dataclass():
    """Else a flat file could not say which is meant."""
    names = Counter(
        f.name
        for cls in (ModelConfig, DataConfig, BTSFTConfig, EvaluationConfig)
        for f in fields(cls)
    )
    assert max(names.values()) == 1


def test_the_command_overrules_the_file_and_the_file_the_defaults(written):
    settings = bt.read_settings(
        written("threshold: 0.3\nbeta: 1\nmodel: tiny\ndata: tiny/teacher\n"), beta=0.25
    )
    config = settings.training
    assert (config.threshold, config.beta, config.anchor) == (0.3, 0.25, 1.0)
    assert (
        settings.origins["threshold"].endswith("run.yaml")
        and settings.origins["beta"] == "argument"
    )
    assert settings.model.model == "tiny" and settings.data.data == "tiny/teacher"


def test_the_names_of_the_reference_are_mapped_and_said_once(written, capsys):
    settings = bt.read_settings(written(REFERENCE))
    assert capsys.readouterr().out.count("Names of the reference implementation") == 1
    config = settings.training
    assert (config.threshold, config.beta, config.learning_rate) == (0.3, 0.05, 5e-5)
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (32, 12)
    assert (config.num_train_epochs, config.warmup_steps, config.weight_decay) == (1, 500, 0.01)
    assert config.resume_from_checkpoint is None
    assert (settings.model.model, settings.model.tokenizer) == ("path/to/checkpoint", "gpt2")
    assert (settings.data.data, settings.data.max_length) == ("path/to/dataset", 512)
    assert settings.origins["beta"].endswith("run.yaml, as bf_beta")


def test_what_is_written_reads_back_to_the_same(written):
    """Each setting of each dataclass, with its origin; awkward texts too."""
    template = "{% for m in messages %}\n{{ m.content }}: # no comment\n{% endfor %}"
    given = {
        "threshold": 0.35,
        "learning_rate": "3e-5",
        "template": template,
        "max_memory": {"0": "14GiB"},
        "device_map": "auto",
    }
    given |= {
        "lora_targets": ["q_proj", "v_proj"],
        "report_to": ["tensorboard"],
        "output_dir": "runs/a: b # c",
    }
    settings = bt.read_settings(model="tiny", data="tiny/teacher", **given)
    again = bt.read_settings(written(settings.to_yaml()))
    for group in ("model", "data", "evaluation"):
        assert getattr(again, group) == getattr(settings, group)
    assert again.training.to_dict() == settings.training.to_dict()
    lines = {line.partition(":")[0]: line for line in settings.to_yaml().splitlines()}
    assert (
        lines["threshold"] == "threshold: 0.35  # argument"
        and lines["beta"] == "beta: 0.5  # default"
    )
    names = {
        f.name
        for cls in (ModelConfig, DataConfig, BTSFTConfig, EvaluationConfig)
        for f in fields(cls)
        if f.init
    }
    assert set(yaml.safe_load(settings.to_yaml())) == names - {"hub_token"}


def test_json_says_the_same_as_yaml(written):
    given = {"model": "tiny", "data": "tiny/teacher", "lr": 5e-5, "freeze": [], "strict": False}
    json_file, yaml_file = written(json.dumps(given), "run.json"), written(yaml.safe_dump(given))
    assert bt.read_settings(json_file).values == bt.read_settings(yaml_file).values


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tresholt": 0.5}, "unknown setting 'tresholt'; did you mean threshold"),
        ({"bf_betta": 0.5}, "did you mean bf_beta"),
        ({"xyzzy": 1}, "unknown setting 'xyzzy'; `btsft --help` lists them"),
        ({"threshold": "high"}, "threshold='high': number wanted"),
        ({"threshold": True}, "threshold=True: number wanted"),
        ({"lora_r": 2.5}, "lora_r=2.5: whole number wanted"),
        ({"dora": "perhaps"}, "dora='perhaps': true or false wanted"),
        ({"lora_targets": 3}, "list or text wanted; put it in quotes"),
        ({"run_name": 1}, "run_name=1: null or text wanted; put it in quotes"),
        ({"max_length": None}, "max_length=None: whole number wanted"),
        ({"hub_token": "hf_secret"}, "hub_token is a secret"),
        ({"lr": 1e-4, "learning_rate": 1e-4}, "lr and learning_rate are two names of one setting"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_stops_by_name_and_place(given, words):
    with pytest.raises(ValueError, match=r"^argument: ") as stop:
        bt.read_settings(**given)
    assert words in str(stop.value) and "hf_secret" not in str(stop.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [("- a\n- b\n", "a mapping of settings wanted"), ("a: [\n", "neither YAML nor JSON"), ("", "a mapping"),
     ("1: 2\n", "a mapping")],
)  # fmt: skip
def test_a_file_that_is_no_mapping_is_refused(written, text, words):
    path = written(text)
    with pytest.raises(ValueError, match=words) as stop:
        bt.read_settings(path)
    assert str(path) in str(stop.value)


@pytest.mark.parametrize(("group", "lacking"), [("model", "model"), ("data", "data")])
def test_what_is_lacking_is_named_when_it_is_needed(group, lacking):
    with pytest.raises(ValueError, match=f"^{lacking} is lacking: "):
        getattr(bt.read_settings(threshold=0.5), group)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "lorra"}, "method='lorra': 'qlora', 'lora' or 'full' wanted"),
        ({"bits": 5}, "bits=5: 4 or 8 wanted"),
        ({"lora_dropout": 2}, "lora_dropout=2"),
        ({"freeze": ["norms"]}, "freeze=['norms'] does nothing with method='qlora'"),
        ({"method": "lora", "bits": 8}, "bits=8 does nothing with method='lora'"),
        ({"method": "full", "dora": True}, "dora=True does nothing with method='full'"),
        ({"max_memory": {0: "14GiB"}}, "does nothing without device_map"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_model_setting_out_of_its_range_is_named(given, words):
    with pytest.raises(ValueError) as stop:
        bt.read_settings(model="tiny", **given).model  # noqa: B018
    assert words in str(stop.value)


def test_the_folder_of_a_run_is_named_after_model_and_data():
    assert (
        bt.read_settings(model="meta/Llama-3", data="sets/r1.jsonl").training.output_dir
        == "runs/Llama-3-r1"
    )


def test_no_is_a_word_where_a_strategy_is_meant(written):
    """YAML reads it as false."""
    settings = bt.read_settings(
        written("save_strategy: no\neval_strategy: no\nsave_only_model: no\n")
    )
    assert settings.values == {
        "save_strategy": "no",
        "eval_strategy": "no",
        "save_only_model": False,
    }


def test_a_settings_file_of_a_run_keeps_the_origins(written):
    first = bt.read_settings(written("beta: 2\n"), threshold=0.7, model="tiny", data="tiny/teacher")
    again = bt.read_settings(written(first.to_yaml(), "settings.yaml"), seed=3)
    assert again.origins["threshold"] == "argument" and again.origins["beta"].endswith("run.yaml")
    assert again.origins["anchor"] == "default" and again.origins["seed"] == "argument"


def test_what_is_taken_later_counts(written):
    settings = bt.read_settings(model="tiny", threshold=0.1)
    assert settings.training.threshold == 0.1
    settings.take({"threshold": 0.9}, "later")
    assert settings.training.threshold == 0.9 and "threshold: 0.9  # later" in settings.to_yaml()


def test_help_has_every_own_setting_with_its_default():
    told = describe()
    for cls in (ModelConfig, DataConfig, EvaluationConfig):
        for f in fields(cls):
            assert f"  {f.name}=" in told
    assert "threshold=0.2 " in told and "learning_rate=5e-05 " in told
    assert max(map(len, told.splitlines())) <= 120
