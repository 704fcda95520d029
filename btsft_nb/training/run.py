"""A run folder read back: its settings, machine, data and history."""

import json
import platform
import re
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import torch
import yaml
from transformers import PreTrainedModel, TrainingArguments

from ..data.report import Report
from ..files import read_lines, versions
from ..models.load import BASE_FILE
from ..text import visible
from .checkpoints import CONFIG_FILE, ENVIRONMENT_FILE, REPORT_FILE, checkpoints, is_whole

HISTORY_FILE = "history.jsonl"
_LIBRARIES = ("btsft_nb", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets")
_SETTINGS = ("threshold", "threshold_end", "anchor", "beta", "unit", "learning_rate", "seed")
_LOGS = ("loss", "nll_think", "expected_reward", "blurred_share", "eval_loss", "train_runtime")
# the folders of an absolute path
_FOLDERS = re.compile(r"(?<![\w.~/\\])(~|[A-Za-z]:)?[/\\]([^/\\\s=]*[/\\])*")
_SECRET = re.compile(r"((?:token|key|secret|password)\s*[=\s]\s*)\S+|\bhf_\w+", re.IGNORECASE)


class Run:
    """A run folder as it is now; while the training goes on, `Run(path)` once more reads what came since.

    Attributes:
        config: the fields of the BTSFTConfig.
        settings: settings.yaml of the command line, else empty.
        base: the base model of an adapter, else empty.
        environment: see `environment`; and `max_steps`.
        report: the data report, or None.
        history: a DataFrame with a row for each log.
        checkpoints: the folders of whole checkpoints.
        step: the step of the last log.
        max_steps: the steps of the whole run.
        finished: whether its model is saved.

    Raises:
        FileNotFoundError: the folder is no run of this library.

    >>> bt.Run("runs/none")
    Traceback (most recent call last):
    FileNotFoundError: runs/none is no run of btsft_nb: it has neither training_config.json nor btsft_base.json
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not any((self.path / name).is_file() for name in (CONFIG_FILE, BASE_FILE)):
            raise FileNotFoundError(
                f"{path} is no run of btsft_nb: it has neither {CONFIG_FILE} nor {BASE_FILE}"
            )
        self.config = self._read(CONFIG_FILE)
        self.settings = self._read("settings.yaml")
        self.base = self._read(BASE_FILE)
        self.environment = self._read(ENVIRONMENT_FILE)
        report = self._read(REPORT_FILE)
        self.report = Report(**report) if report else None
        self.history = pd.DataFrame(read_lines(self.path / HISTORY_FILE))
        self.checkpoints = [folder for folder in checkpoints(path) if is_whole(folder)]
        self.step = int(self.history["step"].max()) if len(self.history) else 0
        self.max_steps = self.environment.get("max_steps")
        self.finished = bool(self.environment.get("finished"))

    @property
    def summary(self) -> dict:
        """The main facts, by name, as far as they are known; a notebook shows them as a table."""
        facts = {"base_model": self.environment.get("base_model"), **self.base}
        if self.report:
            facts |= {"data": self.report.source, "examples": self.report.kept}
        facts |= {name: self.config.get(name) for name in _SETTINGS}
        facts |= {"step": self.step, "max_steps": self.max_steps, "finished": self.finished}
        facts |= {name: self.last(name) for name in _LOGS}
        return {name: value for name, value in facts.items() if value is not None}

    def last(self, name: str) -> float | None:
        """The value of a column of `history` that was logged last, or None."""
        values = self.history[name].dropna() if name in self.history else ()
        return float(values.iloc[-1]) if len(values) else None

    def records(self, name: str) -> list[dict]:
        """What a tracker has written: `records("samples")` reads samples.jsonl."""
        file = self.path / f"{name}.jsonl"
        if not file.is_file():
            names = sorted(path.stem for path in self.path.glob("*.jsonl"))
            raise FileNotFoundError(f"{self.path}: no {file.name}; there are {', '.join(names)}")
        return read_lines(file)

    def _read(self, name: str) -> dict:
        file = self.path / name
        if not file.is_file():
            return {}
        parse = json.loads if file.suffix == ".json" else yaml.safe_load
        return parse(file.read_text(encoding="utf-8"))

    def _table(self) -> pd.DataFrame:
        texts = {}
        for name, value in self.summary.items():
            texts[name] = f"{value:,.4g}" if isinstance(value, float) else visible(value)
        return pd.DataFrame({visible(self.path): texts})

    def __repr__(self) -> str:
        return self._table().to_string()

    def _repr_html_(self) -> str:
        return self._table().to_html()  # which escapes


def environment(model: PreTrainedModel, args: TrainingArguments, examples: int) -> dict:
    """What environment.json says when a run begins: no secret, no variable, no name of a host or a user's folder."""
    name = model.config._name_or_path
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    command = shlex.join(_FOLDERS.sub("", argument) for argument in sys.argv)
    batch = args.train_batch_size * args.gradient_accumulation_steps
    return {
        "started": now(),
        "command": _SECRET.sub(r"\1***", command),
        "git_commit": _commit(),
        "versions": {"python": platform.python_version(), **versions(_LIBRARIES)},
        "devices": gpus or [f"{platform.machine()} CPU"],
        "processes": args.world_size,
        "examples": examples,
        "examples_per_step": batch * args.world_size,
        "adapter": hasattr(model, "peft_config"),
        "base_model": name,
    }


def now() -> str:
    """The time, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _commit() -> str | None:
    """The git commit of the working directory, with -dirty if files differ; None outside a repository."""
    if not shutil.which("git"):
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
