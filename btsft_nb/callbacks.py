"""What happens while a model trains: curves that grow in the notebook, a stop between steps."""

import io
import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from IPython.display import Image, display
from matplotlib.figure import Figure
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from .card import model_card
from .checkpoints import ENVIRONMENT, check_room
from .plots import training_curves
from .run import HISTORY, Run, write


class Record(TrainerCallback):
    """Lets the run folder explain itself at any time: how it was begun, each log as it comes, a model card.

    A kill leaves at most a cut last line in history.jsonl; a resumed run has the logs of its checkpoint. `files`: what
    goes into the folder and each checkpoint as JSON, by file name.
    """

    files: dict[str, dict]
    folder = None  # of the main process, once training has begun

    def on_train_begin(self, args, state, control, model, **kwargs):
        Path(args.output_dir).mkdir(parents=True, exist_ok=True)
        check_room(args, state, model)
        self.files[ENVIRONMENT]["max_steps"] = state.max_steps
        if state.is_world_process_zero:
            self.folder = Path(args.output_dir)
            write(self.folder / HISTORY, "".join(json.dumps(entry) + "\n" for entry in state.log_history))
            self.update()

    def on_log(self, args, state, control, **kwargs):
        if self.folder:
            with (self.folder / HISTORY).open("a", encoding="utf-8") as file:
                file.write(json.dumps(state.log_history[-1]) + "\n")

    def on_save(self, args, state, control, **kwargs):
        self.update()

    def save(self, folder: Path) -> None:
        """The files, into the folder of the run or of a checkpoint."""
        folder.mkdir(exist_ok=True)
        for name, record in self.files.items():
            write(folder / name, json.dumps(record, indent=2) + "\n")

    def update(self, finished: str | None = None) -> None:
        """Files and card as they are now; `finished` is the time at which all was saved."""
        self.files[ENVIRONMENT]["finished"] = finished
        if self.folder:
            self.save(self.folder)
            model_card(Run(self.folder)).save(self.folder / "README.md")


class LiveCurves(TrainerCallback):
    """Draws loss by kind, blurred share and both format rewards under the cell that trains, at most once a second.

    Outside a notebook it draws nothing.

    Args:
        name: what to call this run in the legend.
        compare: histories of earlier runs by name (`trainer.state.log_history`), drawn beside it.
    """

    _handle = None  # trackers before it in the list log before it begins

    def __init__(self, name: str, compare: dict[str, list[dict]] | None = None):
        self.name, self.compare = name, compare or {}

    def on_train_begin(self, args, state, control, **kwargs):
        self._start = self._drawn = time.monotonic()
        self._first_step = state.global_step
        self._handle = display(self._picture(state), display_id=True)

    def on_log(self, args, state, control, **kwargs):
        if self._handle and time.monotonic() - self._drawn > 1:
            self._drawn = time.monotonic()
            self._handle.update(self._picture(state))

    def on_train_end(self, args, state, control, **kwargs):
        if self._handle:
            self._handle.update(self._picture(state))

    def _picture(self, state) -> Image:
        spent = time.monotonic() - self._start
        done = state.global_step - self._first_step
        left = f", {spent / done * (state.max_steps - state.global_step):.0f} s left" if done else ""
        title = f"{self.name}: step {state.global_step} of {state.max_steps}, {spent:.0f} s{left}"
        figure, png = Figure((13, 3), dpi=100, layout="constrained"), io.BytesIO()  # pyplot would keep it open
        training_curves({**self.compare, self.name: state.log_history}, title, figure.subplots(1, 4))
        figure.savefig(png, facecolor="white")
        return Image(png.getvalue(), metadata={"alt": title})


class StopOnInterrupt(TrainerCallback):
    """Turns an interrupt into a checkpoint and a stop after the step that runs; a second one stops at once.

    `requested`: an interrupt came; `stopped`: it ended the run before its last step was through.
    """

    requested = stopped = False

    @contextmanager
    def listening(self, accelerator: Accelerator) -> Iterator[None]:
        """Within, interrupts are caught; in a thread other than the main one Python delivers none."""
        self.requested, self.stopped, self._accelerator = False, False, accelerator
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = signal.signal(signal.SIGINT, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _note(self, number, frame):
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        print("Stopping after this step; interrupt again to stop at once.", flush=True)

    def on_step_end(self, args, state, control, **kwargs):
        if self._accelerator.num_processes > 1:  # all stop at the same step, or none
            flag = torch.tensor(float(self.requested), device=self._accelerator.device)
            self.requested = self._accelerator.reduce(flag, "sum").item() > 0
        overruled = (
            control.should_evaluate and args.save_strategy == SaveStrategy.BEST
        )  # an evaluation decides on saving
        if self.requested and not overruled:
            self.stopped = control.should_training_stop = True
            # at the end of an epoch its evaluation comes first, and to save twice would risk the checkpoint
            control.should_save = bool(state.epoch % 1) or args.save_strategy == SaveStrategy.BEST

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.stopped and state.epoch % 1:  # what belongs to the end of an epoch comes when the epoch is over
            control.should_log = control.should_evaluate = control.should_save = False
        elif self.stopped:
            control.should_save = args.save_strategy != SaveStrategy.BEST

    def on_save(self, args, state, control, **kwargs):
        if self.stopped:  # else Trainer would end as if all were done: load the best model, and delete this checkpoint
            state.best_model_checkpoint = None


def less_memory(args: TrainingArguments, model: PreTrainedModel, longest: int | None) -> str:
    """What to change after a GPU ran out of memory, in order, with the values in use; `longest` example in tokens."""
    quantised = getattr(model, "is_loaded_in_4bit", False)
    return (
        f"What to change, in this order: per_device_train_batch_size (now {args.per_device_train_batch_size}) down "
        f"and gradient_accumulation_steps (now {args.gradient_accumulation_steps}) up as much, for the same steps; "
        f"gradient_checkpointing=True (now {args.gradient_checkpointing}); a smaller max_length in prepare (the "
        f"longest example has {longest or 'an unknown number of'} tokens); 4-bit weights, by load_model(..., "
        f"qlora=True) (now {'so' if quantised else 'not so'}); a smaller model."
    )
