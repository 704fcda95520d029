"""A run folder read back: its settings, machine, data and history."""

import json
from pathlib import Path

import pandas as pd
import yaml

from ..data.report import Report
from ..files import read_lines
from ..models.load import BASE_FILE
from ..text import visible
from .checkpoints import CONFIG_FILE, ENVIRONMENT_FILE, REPORT_FILE, checkpoints, is_whole

HISTORY_FILE = "history.jsonl"
_SETTINGS = ("threshold", "threshold_end", "anchor", "beta", "unit", "learning_rate", "seed")
_LOGS = ("loss", "nll_think", "expected_reward", "blurred_share", "eval_loss", "train_runtime")


class Run:
    """A run folder as it is now; while the training goes on, `Run(path)` once more reads what came since.

    Attributes:
        config: the fields of the BTSFTConfig.
        settings: settings.yaml of the command line, else empty.
        base: the base model of an adapter, else empty.
        environment: what it ran on, in versions, devices and so on; and `max_steps`.
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

    def _read(self, name):
        file = self.path / name
        if not file.is_file():
            return {}
        parse = json.loads if file.suffix == ".json" else yaml.safe_load
        return parse(file.read_text(encoding="utf-8"))

    @property
    def summary(self) -> dict:
        """The main facts, by name, as far as they are known; a notebook shows them as a table."""
        facts = {"base_model": self.environment.get("base_model"), **self.base}
        if self.report:
            facts |= {"data": self.report.source, "examples": self.report.kept}
        facts |= {name: self.config.get(name) for name in _SETTINGS}
        facts |= {"step": self.step, "max_steps": self.max_steps, "finished": self.finished}
        # what was logged last
        last = self.history.ffill().tail(1).to_dict("list")
        for name in _LOGS:
            facts[name] = last.get(name, [None])[0]
        return {name: value for name, value in facts.items() if pd.notna(value)}

    def _table(self):
        texts = {}
        for name, value in self.summary.items():
            texts[name] = f"{value:,.4g}" if isinstance(value, float) else visible(value)
        return pd.DataFrame({visible(self.path): texts})

    def __repr__(self) -> str:
        return self._table().to_string()

    def _repr_html_(self) -> str:
        return self._table().to_html()  # which escapes
