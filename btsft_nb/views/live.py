"""Curves that grow in the notebook while a model trains."""

import io
import time

from IPython.display import Image, display
from matplotlib.figure import Figure
from transformers import TrainerCallback

from .plots import training_curves


class LiveCurves(TrainerCallback):
    """Draws loss by kind, blurred share and both format rewards under the cell that trains, at most once a second.

    Outside a notebook it draws nothing.

    Args:
        name: what to call this run in the legend.
        compare: histories of earlier runs by name (`trainer.state.log_history`), drawn beside it.
    """

    shows_progress = True  # in place of the trainer's own bar
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
        left = (
            f", {spent / done * (state.max_steps - state.global_step):.0f} s left" if done else ""
        )
        title = f"{self.name}: step {state.global_step} of {state.max_steps}, {spent:.0f} s{left}"
        figure, png = (
            Figure((13, 3), dpi=100, layout="constrained"),
            io.BytesIO(),
        )  # pyplot would keep it open
        training_curves(
            {**self.compare, self.name: state.log_history}, title, figure.subplots(1, 4)
        )
        figure.savefig(png, facecolor="white")
        return Image(png.getvalue(), metadata={"alt": title})
