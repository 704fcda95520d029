"""What happens while a model trains: curves that grow in the notebook, a stop between steps."""

import io
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from IPython.display import Image, display
from matplotlib.figure import Figure
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

from .plots import training_curves


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
