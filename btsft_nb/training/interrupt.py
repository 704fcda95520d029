"""A stop between two steps, with a checkpoint."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy


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
        if (
            self.stopped and state.epoch % 1
        ):  # what belongs to the end of an epoch comes when the epoch is over
            control.should_log = control.should_evaluate = control.should_save = False
        elif self.stopped:
            control.should_save = args.save_strategy != SaveStrategy.BEST

    def on_save(self, args, state, control, **kwargs):
        if self.stopped:  # else Trainer would end as if all were done: load the best model, and delete this checkpoint
            state.best_model_checkpoint = None
