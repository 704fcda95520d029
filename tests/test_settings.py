"""Settings: a file and key=value become the dataclasses, typed, named where they are wrong, and written down."""

import json
from collections import Counter
from dataclasses import MISSING, fields

import pytest
import yaml

import btsft_nb as bt
from btsft_nb.cli.settings import DataConfig, EvaluationConfig
from btsft_nb.cli.settings_help import describe, setting_names
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
    assert settings.source.endswith("run.yaml; overridden: beta")
    assert settings.model.model == "tiny" and settings.data.data == "tiny/teacher"


def test_the_names_of_the_reference_are_mapped_and_logged(written, caplog):
    caplog.set_level("INFO", "btsft_nb")
    settings = bt.read_settings(written(REFERENCE))
    assert "run.yaml: bf_beta is beta here" in caplog.text
    assert "run.yaml: model_name is not needed here" in caplog.text
    config = settings.training
    assert (config.threshold, config.beta, config.learning_rate) == (0.3, 0.05, 5e-5)
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (32, 12)
    assert (config.num_train_epochs, config.warmup_steps, config.weight_decay) == (1, 500, 0.01)
    assert config.resume_from_checkpoint is None
    assert (settings.model.model, settings.model.tokenizer) == ("path/to/checkpoint", "gpt2")
    assert (settings.data.data, settings.data.max_length) == ("path/to/dataset", 512)


def test_what_is_written_reads_back_to_the_same(written):
    """Each setting of each dataclass, whence once for the file; awkward texts too."""
    template = "{% for m in messages %}\n{{ m.content }}: # no comment\n{% endfor %}"
    changes = {
        "threshold": 0.35,
        "learning_rate": "3e-5",
        "template": template,
        "device_map": "auto",
        "max_memory": {"0": "14GiB"},
        "format": {"question": "q", "answer": "a: b"},
        "lora_targets": ["q_proj", "v_proj"],
        "report_to": ["tensorboard"],
        "output_dir": "runs/a: b # c",
        "accelerator_config": {"split_batches": True},
    }
    file = written("model: tiny\ndata: tiny/teacher\nseed: 3\n")
    settings = bt.read_settings(file, **changes)
    again = bt.read_settings(written(settings.to_yaml(), "settings.yaml"))
    for group in ("model", "data", "evaluation"):
        assert getattr(again, group) == getattr(settings, group)
    assert again.training.to_dict() == settings.training.to_dict()
    assert again.model.max_memory == {"0": "14GiB"}
    assert again.data.format == {"question": "q", "answer": "a: b"}
    text = settings.to_yaml()
    assert text.splitlines()[0] == f"# from {file}; overridden: {', '.join(changes)}"
    assert text.count("# from") == 1 and "\nseed: 3\n" in text
    names = {
        f.name
        for cls in (ModelConfig, DataConfig, BTSFTConfig, EvaluationConfig)
        for f in fields(cls)
        if f.default_factory is MISSING
    }
    assert set(yaml.safe_load(text)) == names


def test_json_says_the_same_as_yaml(written):
    given = {"model": "tiny", "data": "tiny/teacher", "lr": 5e-5, "freeze": [], "strict": False}
    json_file, yaml_file = written(json.dumps(given), "run.json"), written(yaml.safe_dump(given))
    assert bt.read_settings(json_file).values == bt.read_settings(yaml_file).values


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"tresholt": 0.5}, "unknown setting 'tresholt', did you mean 'threshold'?"),
        ({"bf_betta": 0.5}, "did you mean 'bf_beta'?"),
        ({"xyzzy": 1}, "unknown setting 'xyzzy'"),
        ({"lr": 1e-4, "learning_rate": 1e-4}, "lr and learning_rate are one setting"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_name_stops_by_name_and_place(written, given, words):
    with pytest.raises(ValueError, match=r"^arguments: ") as stop:
        bt.read_settings(**given)
    assert words in str(stop.value)
    with pytest.raises(ValueError, match=r"run\.yaml: ") as stop:
        bt.read_settings(written(yaml.safe_dump(given)))
    assert words in str(stop.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"threshold": "high"}, "--threshold: invalid float value: 'high'"),
        ({"threshold": True}, "--threshold: invalid float value: 'yes'"),
        ({"threshold": {"a": 1}}, "--threshold: invalid float value: "),
        ({"lora_r": 2.5}, "invalid int value: '2.5'"),
        ({"dora": "perhaps"}, "--dora: Truthy value expected: got perhaps"),
        ({"max_length": None}, "invalid int value: 'None'"),
        ({"layers_not_to_freeze": ["last"], "method": "full"}, "invalid int value: 'last'"),
        ({"lr_scheduler_type": "liner"}, "invalid choice: 'liner' (choose from 'linear', "),
        ({"hub_token": "hf_secret"}, "hub_token"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_value_of_another_type_is_refused_by_name(given, words):
    settings = bt.read_settings(model="tiny", data="tiny/teacher", **given)
    with pytest.raises(ValueError) as stop:
        _ = settings.model, settings.data, settings.training, settings.evaluation
    assert words in str(stop.value) and "hf_secret" not in str(stop.value)


def test_values_take_the_type_of_their_field():
    """Text, as a command line or YAML's 5e-5 give it; one value in place of a list."""
    settings = bt.read_settings(
        model=1, data="tiny/teacher", learning_rate="5e-5", lora_alpha=16, max_steps="-1", lora_targets="q_proj",
        test_prompts="3", strict="no", report_to="tensorboard",
    )  # fmt: skip
    assert (settings.model.model, settings.model.lora_alpha) == ("1", 16.0)
    assert settings.model.lora_targets == "q_proj"
    assert (settings.training.learning_rate, settings.training.max_steps) == (5e-5, -1)
    assert (settings.evaluation.test_prompts, settings.data.strict) == (3, False)
    assert settings.training.report_to == ["tensorboard"]


@pytest.mark.parametrize("group", [ModelConfig, DataConfig, EvaluationConfig, BTSFTConfig])
def test_without_values_a_group_is_its_dataclass(group):
    """HfArgumentParser loses the default of text or a list."""
    name = {BTSFTConfig: "training"}.get(group, group.__name__.removesuffix("Config").lower())
    made = getattr(bt.read_settings(model="tiny", data="d", output_dir="o"), name)
    first = {"model": ["tiny"], "data": ["d"], "training": ["o"], "evaluation": []}[name]
    plain = group(*first)
    if name == "training":
        assert made.to_dict() == plain.to_dict()
    else:
        assert made == plain


@pytest.mark.parametrize(
    ("text", "words"),
    [("- a\n- b\n", "must be a mapping of settings"), ("a: [\n", "not YAML or JSON"), ("", "must be a mapping"),
     ("1: 2\n", "unknown setting 1")],
)  # fmt: skip
def test_a_file_that_is_no_mapping_is_refused(written, text, words):
    path = written(text)
    with pytest.raises(ValueError, match=words) as stop:
        bt.read_settings(path)
    assert str(path) in str(stop.value)


@pytest.mark.parametrize("group", ["model", "data"])
def test_what_is_lacking_is_named_when_it_is_needed(group):
    with pytest.raises(ValueError, match=f"the following arguments are required: --{group}"):
        getattr(bt.read_settings(threshold=0.5), group)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"method": "lorra"}, "method"),
        ({"bits": 5}, "bits"),
        ({"lora_dropout": 2}, "lora_dropout"),
        ({"freeze": ["norms"]}, "freeze does nothing with method='qlora'"),
        ({"method": "lora", "bits": 8}, "bits does nothing with method='lora'"),
        ({"method": "full", "dora": True}, "dora does nothing with method='full'"),
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
    file = written("save_strategy: no\neval_strategy: no\nsave_only_model: no\n")
    training = bt.read_settings(file).training
    assert (training.save_strategy, training.eval_strategy) == ("no", "no")
    assert training.save_only_model is False


def test_names_and_defaults_that_are_read_from_source_are_those_of_the_dataclasses():
    """So that a misspelt key is named without importing torch."""
    names = {
        f.name
        for cls in (ModelConfig, DataConfig, BTSFTConfig, EvaluationConfig)
        for f in fields(cls)
        if f.init
    }
    assert set(setting_names()) == names


def test_help_has_every_setting_of_ours_with_its_default():
    told = describe()
    for cls in (ModelConfig, DataConfig, EvaluationConfig):
        for f in fields(cls):
            assert f"  {f.name}=" in told
    for line in ("threshold=0.2 ", "method=qlora ", "format=null ", "strict=true "):
        assert f"  {line}" in told
    assert "learning_rate, " in told and max(map(len, told.splitlines())) <= 120


@pytest.mark.parametrize(
    ("data", "folder"), [("mix-v0.1", "runs/tiny-mix-v0.1"), ("a/qa.jsonl", "runs/tiny-qa")]
)
def test_the_run_folder_is_called_by_model_and_data(data, folder):
    """Only the ending of a file goes: two versions of a set are two runs."""
    assert bt.read_settings(model="tiny", data=data).values["output_dir"] == folder
