"""A run folder, read back: what was asked, on what it ran, on which data, how it went, and its model."""

import json
import platform
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pandas as pd
import torch
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data.report import Report
from ..files import plain, read_lines, versions
from ..models.load import RECORD, TINY, load_model
from .checkpoints import CONFIG, ENVIRONMENT, REPORT, checkpoints, is_whole

HISTORY = "history.jsonl"
_LIBRARIES = ("btsft_nb", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets")
_ASKED = (
    "threshold",
    "threshold_end",
    "anchor",
    "beta",
    "unit",
    "resample",
    "keep_first",
    "learning_rate",
    "seed",
)
_LOGGED = (
    *(
        "loss",
        "nll_tag",
        "nll_think",
        "nll_answer",
        "expected_reward",
        "blurred_share",
        "eval_loss",
    ),
    *("tokens_per_second", "train_runtime"),
)
_FOLDERS = re.compile(
    r"(?<![\w.~/\\])(~|[A-Za-z]:)?[/\\]([^/\\\s=]*[/\\])*"
)  # those of an absolute path
_SECRET = re.compile(r"((?:token|key|secret|password)\s*[=\s]\s*)\S+|\bhf_\w+", re.IGNORECASE)


class Run:
    """A run folder as it is now; while the training goes on, `Run(path)` once more reads what came since.

    `config`: what the BTSFTConfig said, by name. `settings`: settings.yaml of the command line, else empty. `base`: the
    base model of an adapter, else empty. `environment`: see `environment`, and `max_steps`. `report`: the data report,
    or None. `history`: a DataFrame with a row for each log. `checkpoints`: folders of those written to their end.
    `step`: of the last log. `max_steps`: None where an earlier version began the run. `finished`: its model is saved.
    `summary`: the main things of all these, as far as they are known; a notebook shows it.

    Raises FileNotFoundError where the folder holds no run of this library.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not any((self.path / file).is_file() for file in (CONFIG, RECORD)):
            raise FileNotFoundError(
                f"{path}: neither {CONFIG} nor {RECORD}, so this is no run of btsft_nb"
            )
        self.config, self.base, self.environment, report = map(
            self._read, (CONFIG, RECORD, ENVIRONMENT, REPORT)
        )
        settings = self.path / "settings.yaml"
        self.settings = (
            yaml.safe_load(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        )
        self.report = Report(**report) if report else None
        self.history = pd.DataFrame(read_lines(self.path / HISTORY))
        self.checkpoints = [folder for folder in checkpoints(path) if is_whole(folder)]
        self.step = int(self.history["step"].max()) if len(self.history) else 0
        self.max_steps, self.finished = (
            self.environment.get("max_steps"),
            bool(self.environment.get("finished")),
        )
        found = {"base_model": self.environment.get("base_model")} | self.base
        found |= {"data": self.report.source, "examples": self.report.kept} if report else {}
        found |= {name: self.config.get(name) for name in _ASKED}
        found |= {"step": self.step, "max_steps": self.max_steps, "finished": self.finished}
        logged = [name for name in _LOGGED if name in self.history]
        found |= {
            name: float(value) for name in logged for value in self.history[name].dropna().tail(1)
        }
        self.summary = {name: value for name, value in found.items() if value is not None}

    def records(self, name: str) -> list[dict]:
        """What a tracker has written: `records("samples")` reads samples.jsonl. Raises FileNotFoundError."""
        if not (self.path / f"{name}.jsonl").is_file():
            known = ", ".join(sorted(path.stem for path in self.path.glob("*.jsonl"))) or "none"
            raise FileNotFoundError(f"{self.path}: no {name}.jsonl; there are {known}")
        return read_lines(self.path / f"{name}.jsonl")

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Model and tokenizer, by `load_model`; before they are saved, `load_model(run.checkpoints[-1])` gives some."""
        return load_model(self.path)

    def _read(self, name: str) -> dict:
        file = self.path / name
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    def _table(self) -> pd.DataFrame:
        values = {
            n: f"{v:,.4g}" if isinstance(v, float) else plain(v) for n, v in self.summary.items()
        }
        return pd.DataFrame({plain(self.path): values})

    def __repr__(self) -> str:
        return self._table().to_string()

    def _repr_html_(self) -> str:
        return self._table().to_html()  # which escapes


def environment(model: PreTrainedModel, processes: int, examples: int) -> dict:
    """What environment.json says as a run begins, no secret in it, no variable, no name of host or user's folder."""
    name = model.config._name_or_path
    cuda = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    command = shlex.join(_FOLDERS.sub("", argument) for argument in sys.argv)
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": _SECRET.sub(lambda found: (found[1] or "") + "***", command),
        "git_commit": _commit(),
        "versions": {"python": platform.python_version(), **versions(_LIBRARIES)},
        "devices": cuda or [f"{platform.machine()} CPU"],
        "processes": processes,
        "examples": examples,
        "adapter": hasattr(model, "peft_config"),
        "base_model": "tiny" if name == str(TINY) else name,
    }


def _commit() -> str | None:
    """The git commit of the working directory, with -dirty where files differ; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
