"""A stop between two steps, with a checkpoint: for an interrupt, and for the SIGTERM of Slurm or a spot machine."""

import logging
import signal
from contextlib import contextmanager, suppress

import torch
from transformers import TrainerCallback

_log = logging.getLogger(__name__)


class StopOnInterrupt(TrainerCallback):
    """Turns SIGINT or SIGTERM into a checkpoint and a stop after the current step.

    A second SIGINT stops at once; a second SIGTERM is ignored, since schedulers and torchrun both send one.

    Attributes:
        requested: a signal has come.
        stopped: it ended the run before its last step.
    """

    @contextmanager
    def listening(self, accelerator):
        """Context manager: catch the signals."""
        self.requested = False
        self.stopped = False
        self._is_saved = False
        self._accelerator = accelerator
        before = {}
        # Python refuses them to any thread but the main one
        with suppress(ValueError):
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
        if self.requested:
            self.stopped = True
            control.should_training_stop = True
            # once, and after the evaluation of the epoch, if the epoch ends here
            control.should_save = False

    def on_epoch_end(self, args, state, control, **kwargs):
        """Trainer calls this from the step at which it stops, too."""
        if self.stopped:
            control.should_save = not self._is_saved
            if state.epoch % 1:
                # in the middle of the epoch, what belongs to its end is not due
                control.should_log = False
                control.should_evaluate = False

    def on_save(self, args, state, control, **kwargs):
        self._is_saved = self.stopped
        if self.stopped:
            # Trainer would load the best model and delete this checkpoint, as if the run were complete
            state.best_model_checkpoint = None
