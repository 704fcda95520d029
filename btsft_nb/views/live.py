"""Curves that grow in the notebook while a model trains."""

import io
import time

from IPython.display import Image, display
from matplotlib.figure import Figure
from transformers import TrainerCallback

from .plots import training_curves


class LiveCurves(TrainerCallback):
    """Draws loss by kind, blurred share and format reward under the cell that trains, at most once a second.

    Outside a notebook it draws nothing.

    Args:
        name: what to call this run in the legend.
        compare: histories of earlier runs by name (`trainer.state.log_history`), drawn beside it.

    >>> curves = bt.LiveCurves("BT-SFT", compare={"plain SFT": [{"step": 1, "nll_think": 2.0}]})
    >>> trainer = bt.BTSFTTrainer(..., callbacks=[curves])  # doctest: +SKIP
    """

    shows_progress = True  # in place of the trainer's own bar
    _handle = None  # trackers before it in the list log before it begins

    def __init__(self, name: str, compare: dict[str, list[dict]] | None = None):
        self.name = name
        self.compare = compare or {}

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
        title = f"{self.name}: step {state.global_step} of {state.max_steps}, {spent:.0f} s"
        if done := state.global_step - self._first_step:
            title += f", {spent / done * (state.max_steps - state.global_step):.0f} s left"
        figure = Figure((11, 3), dpi=100, layout="constrained")  # pyplot would keep it open
        histories = {**self.compare, self.name: state.log_history}
        training_curves(histories, title, figure.subplots(1, 2))
        png = io.BytesIO()
        figure.savefig(png, facecolor="white")
        return Image(png.getvalue(), metadata={"alt": title})
