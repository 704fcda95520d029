"""The settings of a run: a flat YAML or JSON file, overruled by `key=value`, as four dataclasses."""

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from ..checks import check_keys
from ..models.config import ModelConfig
from ..text import visible
from .settings_groups import DataConfig, EvaluationConfig
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
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """The settings of a run, as `model`, `data`, `training` and `evaluation`.

    Each of these is made and checked when it is first used: what evaluates a run needs no tracker's key.

    Attributes:
        values: what was set, by name.
        source: where it was set; the first line of settings.yaml.
    """

    values: dict[str, Any]
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

    def _make(self, group: type):
        """A dataclass of the settings that it has, each in the type of its field."""
        from transformers import HfArgumentParser

        parser = HfArgumentParser(group, add_help=False, allow_abbrev=False)
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
        (made,) = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
        return made

    def _refuse(self, message: str) -> None:
        raise ValueError(f"{message} (settings {self.source})")

    def to_yaml(self) -> str:
        """All settings as a file that reads back to the same."""
        parts = [f"# {self.source}\n"]
        for group in (self.model, self.data, self.training, self.evaluation):
            values = {}
            for field in fields(group):
                default = field.default
                if field.default_factory is not MISSING:
                    default = field.default_factory()
                if field.init:
                    value = self.values.get(field.name, default)
                    values[field.name] = getattr(value, "value", value)  # of an Enum
            parts.append(yaml.safe_dump(values, sort_keys=False, allow_unicode=True))
        return "\n".join(parts)


def read_settings(file: str | Path | None = None, /, **changes: Any) -> Settings:
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
    if file is not None:
        path = Path(file)
        path = path / SETTINGS_FILE if path.is_dir() else path
        source = f"from {visible(path)}"
        values = _renamed(_read(path), str(path))
    changes = _renamed(changes, "arguments")
    if file is not None and changes:
        source += f"; overridden: {', '.join(changes)}"
    values |= changes
    if values.get("output_dir") is None:
        names = (Path(str(values.get(key, ""))).name for key in ("model", "data"))
        stems = [re.sub(r"\.(jsonl?|parquet)$", "", name) for name in names if name]
        values["output_dir"] = str(Path("runs", "-".join(stems)))
    return Settings(values, source)


def _read(path: Path) -> dict:
    text = path.read_text(encoding="utf-8")
    try:
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path}: not YAML or JSON: {visible(error, keep=' ')}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"{path}: must be a mapping of settings, such as `threshold: 0.2`")
    return content


def _renamed(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Settings by their names here. Raises ValueError for an unknown name."""
    renamed = {}
    for key, value in values.items():
        name = _REFERENCE_NAMES.get(key, key)
        if name != key:
            _log.info("%s: %s is %s here", source, key, name or "not needed")
            if name in values:
                raise ValueError(f"{source}: {key} and {name} are one setting")
        if name:
            renamed[name] = os.fspath(value) if isinstance(value, os.PathLike) else value
    try:
        check_keys(renamed, [*setting_names(), *_REFERENCE_NAMES])
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    return renamed


def _as_text(value: Any) -> str:
    """A value as it stands on a command line. YAML reads the word `no` as false."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return json.dumps(value) if isinstance(value, dict) else str(value)
