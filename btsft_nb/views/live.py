"""Pictures that change under a cell: curves while a model trains, and the chart beside the dials."""

import base64
import time
from html import escape

from IPython.core.pylabtools import print_figure
from IPython.display import Image, display
from matplotlib.figure import Figure  # pyplot would keep each picture open
from transformers import TrainerCallback

from .plots import frontier, training_curves


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
    _drawn = 0.0

    def __init__(self, name: str, compare: dict[str, list[dict]] | None = None):
        self.name = name
        self.compare = compare or {}

    def on_train_begin(self, args, state, control, **kwargs):
        self._start = time.monotonic()
        self._handle = display(self._picture(state), display_id=True)

    def on_log(self, args, state, control, **kwargs):
        if time.monotonic() - self._drawn > 1:
            self.on_train_end(args, state, control)

    def on_train_end(self, args, state, control, **kwargs):
        if self._handle:
            self._handle.update(self._picture(state))

    def _picture(self, state):
        self._drawn = time.monotonic()
        spent = f"{self._drawn - self._start:.0f} s"
        title = f"{self.name}: step {state.global_step} of {state.max_steps}, {spent}"
        figure = Figure((11, 3), layout="constrained")
        histories = {**self.compare, self.name: state.log_history}
        training_curves(histories, title, figure.subplots(1, 2))
        return Image(print_figure(figure), metadata={"alt": title})


def dials_chart(points):
    """A PNG of diversity against accuracy and compliance: the `summary` of each point under its `label`."""
    figure = Figure((11, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    for ax, metric in zip(axes, ("accuracy", "compliance"), strict=True):
        series = {
            p["label"]: {"": p["summary"]} for p in points if metric in p["summary"]["metrics"]
        }
        frontier(series, "unique thoughts", metric, ax)
    axes[0].get_legend().remove()  # the other one, at the edge, says the same
    return print_figure(figure)


def still_chart(points):
    """The chart as HTML, for pages on which no widget runs."""
    if not points:
        return "Sliders for threshold, anchor and beta: run this cell to use them."
    labels = escape("; ".join(point["label"] for point in points))
    picture = base64.b64encode(dials_chart(points)).decode()
    return f'<img alt="Diversity by {labels}" src="data:image/png;base64,{picture}">'
