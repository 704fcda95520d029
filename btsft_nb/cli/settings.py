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
from .groups import DataConfig, EvaluationConfig
from .settings_help import setting_names

SETTINGS_FILE = "settings.yaml"  # in a run folder
RECIPES = Path(__file__).parents[1] / "recipes"
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

    def replace(self, **changes: object) -> "Settings":
        """The same settings but for those given, by name as in `read_settings`."""
        changes = _renamed(changes, "arguments")
        return Settings(self.values | changes, _overridden(self.source, changes))

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
        file: a flat mapping in .yaml, .yml or .json; a run folder, for its settings.yaml; or the name of a recipe of
            this package: tiny, smollm2-cpu, qwen3-0.6b-t4 or qwen3-1.7b-l4. The names of the reference
            implementation's configuration are understood.
        changes: settings by name. Values may be text, as in a file.

    Raises:
        OSError: no such file or recipe.
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
        path = _path(file)
        text = path.read_text(encoding="utf-8")
        try:
            values = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:
            raise ValueError(f"{path}: not YAML or JSON: {visible(error, keep=' ')}") from error
        if not isinstance(values, dict):
            raise ValueError(f"{path}: must be a mapping of settings")
        values = _renamed(values, path)
        # a recipe goes by its name: where the package is says nothing
        place = file if path.parent == RECIPES and path != Path(file) else path
        source = _overridden(f"from {visible(place)}", changes)
    values |= changes
    if values.get("output_dir") is None:
        model = Path(str(values.get("model"))).name
        data = re.sub(r"\.(jsonl?|parquet)$", "", Path(str(values.get("data"))).name)
        values["output_dir"] = f"runs/{model}-{data}"
    return Settings(values, source)


def _path(file):
    """Where the settings of a file, a run folder or a recipe stand; a name is a recipe's where no file has it."""
    path = Path(file)
    if path.is_dir():
        return path / SETTINGS_FILE
    if path.exists() or path.suffix in (".yaml", ".yml", ".json"):
        return path
    recipe = RECIPES / f"{file}.yaml"
    if not recipe.is_file():
        names = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
        raise FileNotFoundError(f"{visible(file)}: no such file, and no recipe; these are {names}")
    return recipe


def _overridden(source, changes):
    return f"{source}; overridden: {', '.join(changes)}" if changes else source


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
