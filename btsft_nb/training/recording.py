"""What a run writes into its folder while it trains."""

import json
import os
import platform
import subprocess
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch
from transformers import TrainerCallback

from ..data.report import report_of
from ..files import versions, write
from .card import model_card
from .checkpoints import CONFIG_FILE, ENVIRONMENT_FILE, REPORT_FILE
from .run import HISTORY_FILE, Run

_LIBRARIES = ("btsft_nb", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "datasets")


class Record(TrainerCallback):
    """Lets the run folder explain itself at any time: how the run began, each log as it comes, a model card.

    The main process alone has it among its callbacks. A kill leaves at most a cut last line in history.jsonl; a
    resumed run has the logs of its checkpoint.

    Attributes:
        files: what goes into the folder and each checkpoint as JSON, by file name.
    """

    folder = None  # set once training begins

    def __init__(self):
        self.files = {}

    def describe(self, model, args, examples):
        """Keeps how a run begins, for `files`; no secret, no variable, no name of a host or a user's folder."""
        # of the working directory, with -dirty if files differ
        status, text = subprocess.getstatusoutput("git describe --always --dirty")
        gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        batch = args.train_batch_size * args.gradient_accumulation_steps
        machine = {
            "started": _now(),
            "git_commit": None if status else text.split()[-1],  # behind what git warns of
            "versions": {"python": platform.python_version(), **versions(_LIBRARIES)},
            "devices": gpus or [f"{platform.machine()} CPU"],
            "processes": args.world_size,
            "examples": len(examples),
            "examples_per_step": batch * args.world_size,
            "adapter": hasattr(model, "peft_config"),
            "base_model": model.config._name_or_path,
        }
        self.files = {CONFIG_FILE: args.to_dict(), ENVIRONMENT_FILE: machine}
        report = report_of(examples)
        if report:
            machine["data"] = report.source
            self.files[REPORT_FILE] = asdict(report)

    def on_train_begin(self, args, state, control, **kwargs):
        if "wandb" in args.report_to:
            _begin_wandb_run(args)
        self.files[ENVIRONMENT_FILE]["max_steps"] = state.max_steps
        self.folder = Path(args.output_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(log) + "\n" for log in state.log_history]
        write(self.folder / HISTORY_FILE, "".join(lines))
        self.update()

    def on_log(self, args, state, control, **kwargs):
        if self.folder:
            with (self.folder / HISTORY_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(state.log_history[-1]) + "\n")

    def on_save(self, args, state, control, **kwargs):
        self.update()

    def save(self, folder):
        """Writes the files into the folder of the run or of a checkpoint."""
        for name, content in self.files.items():
            write(folder / name, json.dumps(content, indent=2) + "\n")

    def update(self, *, finished=False):
        """Writes files and card as they are now, once finished with the time, and reads the run."""
        self.files[ENVIRONMENT_FILE]["finished"] = _now() if finished else None
        self.save(self.folder)
        run = Run(self.folder)
        model_card(run).save(self.folder / "README.md")
        return run


def _now():
    return datetime.now(UTC).isoformat(timespec="seconds")


def _begin_wandb_run(args):
    """Begins the wandb run to which transformers' callback then logs; that would go on in one of another folder."""
    import wandb

    if wandb.run and wandb.run.config.get("output_dir", args.output_dir) != args.output_dir:
        wandb.run.finish()
    if not wandb.run:
        project = os.environ.get("WANDB_PROJECT", args.project)
        wandb.init(project=project, name=args.run_name)
