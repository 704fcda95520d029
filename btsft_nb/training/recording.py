"""What a run writes into its folder while it trains."""

import json
from dataclasses import asdict
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments

from ..data.report import report_of
from ..files import write
from .card import model_card
from .checkpoints import CONFIG_FILE, ENVIRONMENT_FILE, REPORT_FILE
from .run import HISTORY_FILE, Run, environment, now
from .trackers import begin_wandb_run


class Record(TrainerCallback):
    """Lets the run folder explain itself at any time: how the run began, each log as it comes, a model card.

    A kill leaves at most a cut last line in history.jsonl; a resumed run has the logs of its checkpoint.

    Attributes:
        files: what goes into the folder and each checkpoint as JSON, by file name.
    """

    files: dict[str, dict]
    folder = None  # set in the main process once training begins

    def describe(self, model: PreTrainedModel, args: TrainingArguments, examples: Dataset) -> None:
        """Keeps how a run begins, for `files`."""
        machine = environment(model, args, len(examples))
        self.files = {CONFIG_FILE: args.to_dict(), ENVIRONMENT_FILE: machine}
        report = report_of(examples)
        if report:
            machine["data"] = report.source
            self.files[REPORT_FILE] = asdict(report)

    def on_train_begin(self, args, state, control, **kwargs):
        self.files[ENVIRONMENT_FILE]["max_steps"] = state.max_steps
        if not state.is_world_process_zero:
            return
        if {"wandb", "wandb-offline"} & set(args.report_to):
            begin_wandb_run(args)
        self.folder = Path(args.output_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(entry) + "\n" for entry in state.log_history]
        write(self.folder / HISTORY_FILE, "".join(lines))
        self.update()

    def on_log(self, args, state, control, **kwargs):
        if self.folder:
            with (self.folder / HISTORY_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(state.log_history[-1]) + "\n")

    def on_save(self, args, state, control, **kwargs):
        self.update()

    def save(self, folder: Path) -> None:
        """Writes the files into the folder of the run or of a checkpoint."""
        folder.mkdir(exist_ok=True)
        for name, content in self.files.items():
            write(folder / name, json.dumps(content, indent=2) + "\n")

    def update(self, *, finished: bool = False) -> None:
        """Writes files and card as they are now; once finished, with the time."""
        self.files[ENVIRONMENT_FILE]["finished"] = now() if finished else None
        if self.folder:
            self.save(self.folder)
            model_card(Run(self.folder)).save(self.folder / "README.md")
