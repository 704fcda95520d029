"""A stop between two steps, with a checkpoint: for an interrupt, and for the SIGTERM of Slurm or a spot machine."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from transformers import TrainerCallback
from transformers.trainer_utils import SaveStrategy

_log = logging.getLogger(__name__)


class StopOnInterrupt(TrainerCallback):
    """Turns SIGINT or SIGTERM into a checkpoint and a stop after the current step.

    A second SIGINT stops at once; a second SIGTERM is ignored, since schedulers and torchrun both send one.

    Attributes:
        requested: a signal has come.
        stopped: it ended the run before its last step.
    """

    requested = False
    stopped = False

    @contextmanager
    def listening(self, accelerator: Accelerator) -> Iterator[None]:
        """Context manager: catch the signals, if this is the main thread; Python gives no other any."""
        self.requested = False
        self.stopped = False
        self._accelerator = accelerator
        before = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                before[number] = signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number, frame):
        if not self.requested:
            self.requested = True
            _log.warning("Stopping after this step; interrupt again to stop at once.")
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    def on_step_end(self, args, state, control, **kwargs):
        if self._accelerator.num_processes > 1:
            # all stop at the same step
            flag = torch.tensor(float(self.requested), device=self._accelerator.device)
            self.requested = self._accelerator.reduce(flag, "sum").item() > 0
        only_best = args.save_strategy == SaveStrategy.BEST
        # where an evaluation decides whether this step is saved, the stop waits for the next one
        if self.requested and not (only_best and control.should_evaluate):
            self.stopped = True
            control.should_training_stop = True
            # the last step of an epoch is saved once, after the evaluation that belongs to it
            control.should_save = only_best or not _ends_epoch(state)

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.stopped and _ends_epoch(state):
            control.should_save = args.save_strategy != SaveStrategy.BEST
        elif self.stopped:
            # Trainer calls this in the middle of the epoch, too: what belongs to its end is not due
            control.should_log = False
            control.should_evaluate = False
            control.should_save = False

    def on_save(self, args, state, control, **kwargs):
        if self.stopped:
            # Trainer would load the best model and delete this checkpoint, as if the run were complete
            state.best_model_checkpoint = None


def _ends_epoch(state) -> bool:
    return state.epoch % 1 == 0
