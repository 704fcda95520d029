"""The settings of a run: a flat YAML or JSON file, overruled by `key=value`, as four dataclasses."""

import json
import logging
import re
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from pathlib import Path

import yaml

from ..checks import check_keys
from ..models.config import ModelConfig
from ..text import visible
from .settings_help import setting_names

SETTINGS_FILE = "settings.yaml"  # in a run folder
# The names in the configuration file of the reference implementation; None: not needed here.
_REFERENCE_NAMES = {
    "checkpoint": "model",
    "model_name": None,
    "base_model_checkpoint": None,
    "tokenizer_name": "tokenizer",
    "dataset_train": "data",
    "bf_beta": "beta",
    "batch_size": "per_device_train_batch_size",
    "accumulation_iter": "gradient_accumulation_steps",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
    "trainer_checkpoint": "resume_from_checkpoint",
}


@dataclass
class DataConfig:
    """Which rows, and how they become examples: arguments of `load_rows` and `prepare`.

    Attributes:
        data: Rows to train on: tiny/teacher, .json, .jsonl, .parquet, or a Hub id.
        split: Which split of data.
        data_config: Which configuration of data, on the Hub.
        eval_data: Rows for eval_loss, as data.
        eval_split: Which split of eval_data.
        eval_config: Which configuration of eval_data.
        format: Layout of the rows, by name or as a map of columns; null: told by the fields.
        response_marker: In formatted text, what begins a completion.
        template: chatml, qa, alpaca, a file, or auto: the tokenizer's, else chatml.
        max_length: Tokens that an example may have.
        too_long: Examples that have more: drop, shorten or shorten_prompt.
        duplicates: Examples that were there before: keep or drop.
        strict: Stop at a malformed row; false: drop and count it.
        num_proc: Processes that prepare the rows.
        examples: Train on the first so many: an overfitting check.
    """

    data: str
    split: str = "train"
    data_config: str | None = None
    eval_data: str | None = None
    eval_split: str = "test"
    eval_config: str | None = None
    format: dict[str, str] | str | None = None
    response_marker: str | None = None
    template: str = "auto"
    max_length: int = 1024
    too_long: str = "drop"
    duplicates: str = "keep"
    strict: bool = True
    num_proc: int = 1
    examples: int | None = None

    def __post_init__(self):
        # of a union HfArgumentParser takes one member, which is text here
        if isinstance(self.format, str) and self.format.startswith("{"):
            self.format = json.loads(self.format)


@dataclass
class EvaluationConfig:
    """What a trained model is asked, and how: arguments of `compare`, `sample` and `TrackSamples`.

    Attributes:
        test: Rows to sample from, with the field answer, as data.
        test_split: Which split of test.
        test_config: Which configuration of test.
        test_prompts: How many of them, from the first; null: all.
        samples: Completions of each prompt.
        temperature: Of the draws; 0 takes the most likely token.
        max_new_tokens: Cut a completion off after so many tokens.
        top_k: Draw from the so many most likely tokens.
        top_p: Draw from the likeliest tokens with this share.
        no_repeat_ngram_size: No n-gram of this size comes twice.
        max_prompt_length: Tokens of a prompt; more lose the first.
        sample_batch_size: Completions drawn at once.
        sample_seed: Of the draws.
        answer: How answers are compared; see btsft_nb.evaluate.
        text_scores: Also BLEU and ROUGE of the answers.
        report: Folder of the report; null: evaluation in the run's.
        evaluate_base: Also ask the model under the adapters.
        track_every: While training, sample the test prompts every so many steps; null: never.
    """

    test: str | None = None
    test_split: str = "test"
    test_config: str | None = None
    test_prompts: int | None = None
    samples: int = 8
    temperature: float = 1.0
    max_new_tokens: int = 256
    top_k: int | None = None
    top_p: float | None = None
    no_repeat_ngram_size: int | None = None
    max_prompt_length: int | None = None
    sample_batch_size: int = 64
    sample_seed: int = 0
    answer: str = "auto"
    text_scores: bool = False
    report: str | None = None
    evaluate_base: bool = True
    track_every: int | None = None

    def __post_init__(self):
        if self.track_every and self.test is None:
            raise ValueError("track_every needs test=ROWS to sample from")

    def prompts(self):
        """The test rows that are asked."""
        from ..data.rows import load_rows

        return load_rows(self.test, self.test_split, self.test_config)[: self.test_prompts]

    def sampling(self):
        """The arguments of `sample`."""
        from ..evaluation.sampling import SamplingSettings

        ours = {"n": "samples", "seed": "sample_seed", "batch_size": "sample_batch_size"}
        names = [field.name for field in fields(SamplingSettings)]
        return {name: getattr(self, ours.get(name, name)) for name in names}


@dataclass(frozen=True)
class Settings:
    """The settings of a run, as `model`, `data`, `training` and `evaluation`.

    Each of these is made and checked when it is first used: what evaluates a run needs no tracker's key.

    Attributes:
        values: what was set, by name.
        source: where it was set; the first line of settings.yaml.
    """

    values: dict
    source: str

    @cached_property
    def model(self) -> ModelConfig:
        return self._make(ModelConfig)

    @cached_property
    def data(self) -> DataConfig:
        return self._make(DataConfig)

    @cached_property
    def training(self):
        from ..training.config import BTSFTConfig  # only here, since it imports torch

        return self._make(BTSFTConfig)

    @cached_property
    def evaluation(self) -> EvaluationConfig:
        return self._make(EvaluationConfig)

    def _make(self, group):
        """A dataclass of the settings that it has, each in the type of its field."""
        from transformers import HfArgumentParser

        parser = HfArgumentParser(group)
        parser.error = self._refuse
        arguments = []
        for field in fields(group):
            value = self.values.get(field.name, field.default)
            if isinstance(field.default, str):  # which the parser forgets of text or a list
                parser.set_defaults(**{field.name: field.default or None})
            if isinstance(value, list) and value:
                arguments += [f"--{field.name}", *map(_as_text, value)]
            elif value not in (field.default, []):
                arguments.append(f"--{field.name}={_as_text(value)}")
        return group(**vars(parser.parse_args(arguments)))

    def _refuse(self, message):
        raise ValueError(f"{message} (settings {self.source})")

    def to_yaml(self) -> str:
        """All settings as a file that reads back to the same, but for what a default makes of the machine."""
        # what no one set, and a function of the machine decides, is left to it
        defaults = {
            field.name: field.default
            for group in (self.model, self.data, self.training, self.evaluation)
            for field in fields(group)
            if field.default is not MISSING
        }
        values = yaml.safe_dump(defaults | self.values, sort_keys=False, allow_unicode=True)
        return f"# {self.source}\n{values}"


def read_settings(file: str | Path | None = None, /, **changes: object) -> Settings:
    """The settings of a file, overruled by those given.

    Args:
        file: a flat mapping in .yaml, .yml or .json, or a run folder, for its settings.yaml. The names of the
            reference implementation's configuration are understood.
        changes: settings by name. Values may be text, as in a file.

    Raises:
        OSError: no such file.
        ValueError: not such a mapping, or an unknown key, with the nearest known one. A value of another type is
            refused when its group of settings is first used.

    >>> settings = bt.read_settings(model="tiny", data="tiny/teacher", threshold=0.5)
    >>> settings.training.threshold, settings.training.output_dir
    (0.5, 'runs/tiny-teacher')
    >>> bt.read_settings(tresholt=0.5)
    Traceback (most recent call last):
    ValueError: arguments: unknown setting 'tresholt', did you mean 'threshold'?
    """
    values = {}
    source = "from arguments"
    changes = _renamed(changes, "arguments")
    if file is not None:
        path = Path(file)
        path = path / SETTINGS_FILE if path.is_dir() else path
        text = path.read_text(encoding="utf-8")
        try:
            values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"{path}: not YAML or JSON: {visible(error, keep=' ')}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path}: must be a mapping of settings")
        values = _renamed(values, path)
        source = f"from {visible(path)}"
        if changes:
            source += f"; overridden: {', '.join(changes)}"
    values |= changes
    if values.get("output_dir") is None:
        model = Path(str(values.get("model"))).name
        data = re.sub(r"\.(jsonl?|parquet)$", "", Path(str(values.get("data"))).name)
        values["output_dir"] = f"runs/{model}-{data}"
    return Settings(values, source)


def _renamed(values, source):
    """Settings by their names here. Raises ValueError for an unknown name."""
    renamed = {}
    for key, value in values.items():
        name = _REFERENCE_NAMES.get(key, key)
        if name != key:
            text = f"{source}: {key} is {name or 'not needed'} here"
            logging.getLogger(__name__).info(text)
            if name in values:
                raise ValueError(f"{source}: {key} and {name} are one setting")
        if name:
            renamed[name] = str(value) if isinstance(value, Path) else value
    check_keys(renamed, [*setting_names(), *_REFERENCE_NAMES], f"{source}: ")
    return renamed


def _as_text(value):
    """A value as it stands on a command line. YAML reads the word `no` as false."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return json.dumps(value) if isinstance(value, dict) else str(value)
