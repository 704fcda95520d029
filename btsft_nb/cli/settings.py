"""The settings of a run: a flat YAML or JSON file and `key=value`, each held with where it came from."""

import difflib
import json
import os
import re
import textwrap
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, Field, fields
from enum import Enum
from functools import cached_property
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml

from ..models.config import ModelConfig
from ..training.config import BTSFTConfig
from .settings_groups import DataConfig, EvaluationConfig

FILE = "settings.yaml"  # of a run folder
_GROUPS = {
    "model": ModelConfig,
    "data": DataConfig,
    "training": BTSFTConfig,
    "evaluation": EvaluationConfig,
}
_SECRET = {"hub_token": "HF_TOKEN"}
_HINTS = {name: hint for cls in _GROUPS.values() for name, hint in get_type_hints(cls).items()}
_REFERENCE = {  # the names in the configuration file of the reference implementation
    "checkpoint": "model", "tokenizer_name": "tokenizer", "dataset_train": "data", "bf_beta": "beta",
    "batch_size": "per_device_train_batch_size", "accumulation_iter": "gradient_accumulation_steps",
    "epochs": "num_train_epochs", "lr": "learning_rate", "trainer_checkpoint": "resume_from_checkpoint",
}  # fmt: skip
_NEEDLESS = {  # and those that chose a class there
    "model_name": "a checkpoint says of which family it is",
    "base_model_checkpoint": "an adapter says on which model it was trained",
}

_USUAL = [  # of the fields of TrainingArguments, which has over a hundred
    "output_dir", "num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps",
    "learning_rate", "lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim", "bf16", "fp16",
    "gradient_checkpointing", "seed", "eval_strategy", "eval_steps", "save_strategy", "save_steps", "save_total_limit",
    "load_best_model_at_end", "metric_for_best_model", "resume_from_checkpoint",
]  # fmt: skip
_ABOUT = {
    "gradient_checkpointing": "Make activations anew in the backward pass: less memory, more time."
}
_HIDDEN = ["remove_unused_columns", "dataloader_pin_memory"]


class Settings:
    """Values by key, where each came from, and the dataclasses that they make: `model`, `data`, `training` and
    `evaluation`. One whose key is lacking or out of its range raises ValueError when it is asked for.

    `notes`: what was read under another name.
    """

    def __init__(self):
        self.values: dict[str, Any] = {}
        self.origins: dict[str, str] = {}
        self.notes: list[str] = []

    @cached_property
    def model(self) -> ModelConfig:
        return self._made(ModelConfig)

    @cached_property
    def data(self) -> DataConfig:
        return self._made(DataConfig)

    @cached_property
    def evaluation(self) -> EvaluationConfig:
        return self._made(EvaluationConfig)

    @cached_property
    def training(self) -> BTSFTConfig:
        if self.values.get("output_dir") is None:
            names = (Path(self.values.get(key, "")).name for key in ("model", "data"))
            names = (re.sub(r"\.(jsonl?|parquet)$", "", name) for name in names)
            self.take(
                {"output_dir": str(Path("runs", "-".join(filter(None, names))))},
                "default: model and data",
            )
        return self._made(BTSFTConfig)

    def _made(self, cls: type):
        for f in _keys(cls):
            if _default(f) is MISSING and f.name not in self.values:
                raise ValueError(
                    f"{f.name} is lacking: {f.metadata['help']} Give it as {f.name}=..., or in a file"
                )
        return cls(**{f.name: self.values[f.name] for f in _keys(cls) if f.name in self.values})

    def take(self, given: Mapping[str, Any], where: str) -> "Settings":
        """Adds values, over those that are there. Raises ValueError for an unknown key or a value of another type."""
        for key, value in given.items():
            name = _REFERENCE.get(key, key)
            if key in _NEEDLESS:
                self.notes.append(f"{key} is not needed: {_NEEDLESS[key]}")
                continue
            if name != key:
                if name in given:
                    raise ValueError(
                        f"{where}: {key} and {name} are two names of one setting; leave one out"
                    )
                self.notes.append(f"{key} is {name} here")
            self.values[name] = _typed(where, key, name, value)
            for group in _GROUPS:
                vars(self).pop(group, None)  # made of what was there before
            self.origins[name] = " ".join(where.split()) + (f", as {key}" if name != key else "")
        return self

    def to_yaml(self) -> str:
        """Every setting as a file that reads back to the same, with where it came from as a comment."""
        parts = []
        for group, cls in _GROUPS.items():
            parts.append(f"# {group}")
            for f in _keys(cls):
                value = self.values.get(f.name, _default(f))
                value = value.value if isinstance(value, Enum) else value
                if value is not MISSING and f.name not in _SECRET:
                    text = (
                        yaml.safe_dump(value, default_flow_style=True, width=10**6)
                        .removesuffix("...\n")
                        .strip()
                    )
                    parts.append(f"{f.name}: {text}  # {self.origins.get(f.name, 'default')}")
        return "\n".join(parts) + "\n"


def read_settings(
    file: str | Path | None = None, where: str = "argument", **given: Any
) -> Settings:
    """The settings of a file, overruled by those given: `read_settings("run.yaml", threshold=0.5)`.

    Args:
        file: a flat mapping in .yaml, .yml or .json, or a run folder, for its settings.yaml. It may use the names of
            the reference implementation's configuration; what they became is printed.
        where: what `Settings.origins` says of those given.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not such a mapping, an unknown key, with the closest known ones, or a value of another type.
    """
    settings = Settings()
    if file is not None:
        path = Path(file) / FILE if Path(file).is_dir() else Path(file)
        settings.take(_read(path), str(path))
        if path.name == FILE:  # which has the origins as comments
            origins = re.findall(
                r"^(\w+): .*  # (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE
            )
            settings.origins.update({key: said for key, said in origins if key in settings.values})
    settings.take(given, where)
    if settings.notes:
        print(f"Names of the reference implementation: {'; '.join(settings.notes)}.")
    return settings


def _read(path: Path) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, seen from {Path.cwd()}")
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(
            f"{path}: neither YAML nor JSON: {' '.join(str(error).split())}"
        ) from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise ValueError(
            f"{path}: a mapping of settings wanted, as `threshold: 0.2` on a line, not {content!r:.60}"
        )
    return content


def _typed(where: str, key: str, name: str, value: Any) -> Any:
    """The value in the type of its key. YAML reads 5e-5, without a point, as a text."""
    if name in _SECRET:
        raise ValueError(f"{where}: {key} is a secret, which no run may write down: set {_SECRET[name]} in the "
                         "environment or in a file .env")  # fmt: skip
    if name not in _HINTS:
        close = difflib.get_close_matches(key, [*_HINTS, *_REFERENCE], n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "`btsft --help` lists them"
        raise ValueError(f"{where}: unknown setting {key!r}; {hint}")
    hint, value = _HINTS[name], os.fspath(value) if isinstance(value, os.PathLike) else value
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = {get_origin(kind) or kind for kind in kinds}
    if value is False and any(issubclass(kind, Enum) for kind in kinds):
        return "no"  # which YAML reads so
    if list in kinds and str not in kinds and isinstance(value, (str, int)):
        value = [value]
    if type(value) in kinds or (value is None and NoneType in kinds):
        return value
    with suppress(ValueError):
        if float in kinds and isinstance(value, (int, str)) and not isinstance(value, bool):
            return float(value)
    quotes = "; put it in quotes" if str in kinds and not isinstance(value, (list, dict)) else ""
    raise ValueError(
        f"{where}: {key}={value!r}: {' or '.join(sorted(map(_said, kinds)))} wanted{quotes}"
    )


def _said(kind: type) -> str:
    names = {
        str: "text",
        int: "whole number",
        float: "number",
        bool: "true or false",
        NoneType: "null",
    }
    return names.get(kind, kind.__name__)


def _keys(cls: type) -> list[Field]:
    return [f for f in fields(cls) if f.init]


def _default(f: Field) -> Any:
    return f.default if f.default_factory is MISSING else f.default_factory()


def describe() -> str:
    """All keys, group by group, with their defaults and what they are; of those of TrainingArguments the usual ones."""
    parts = []
    for group, cls in _GROUPS.items():
        parts.append(f"\n{group}:")
        own = list(cls.__annotations__)
        for f in sorted(_keys(cls), key=lambda f: own.index(f.name) if f.name in own else len(own)):
            if f.name in {*own, *_USUAL} - set(_HIDDEN):
                default = _default(f)
                default = default.value if isinstance(default, Enum) else default
                said = "" if default is MISSING else "null" if default is None else str(default)
                about = (
                    " ".join(_ABOUT.get(f.name, f.metadata["help"]).split())
                    .split(". ")[0]
                    .rstrip(".")
                    + "."
                )
                parts.append(textwrap.fill(f"{f.name}={said}".ljust(34) + about, 118,
                                           initial_indent="  ", subsequent_indent=" " * 36))  # fmt: skip
    parts.append("  ... and every other field of transformers.TrainingArguments")
    return "\n".join(parts)
