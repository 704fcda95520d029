"""Records -> matplotlib. Each function draws into the Axes that it is given, else into new ones, and returns them.

The card is white on any page, and nothing depends on colour alone.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.text import Text

from ..data.kinds import KIND_COLORS  # noqa: F401, beside COLORS for figures of a notebook's own
from ..text import visible
from .metric_names import present, unit
from .palette import COLORS

_MARKERS = "osD^vP"
_INK = "#222222"
_CURVES = {  # label of the axis -> keys in the logs
    "nll, nats per token": ("nll_think", "nll_answer", "nll_tag"),
    "blurred share, or reward": ("blurred_share", "expected_reward", "format_reward"),
}


def training_curves(
    histories: dict[str, list], title: str = "", axes: Sequence[Axes] | None = None
) -> list[Axes]:
    """Training logs by run, in two Axes: nll by kind; blurred share and format rewards.

    >>> log = [{"step": 1, "nll_think": 2.0, "blurred_share": 0.2}, {"step": 2, "nll_think": 1.5}]
    >>> nll, shares = bt.plots.training_curves({"run": log})
    >>> nll.lines[0].get_xydata().tolist()
    [[1.0, 2.0], [2.0, 1.5]]
    """
    axes = _axes(axes, len(_CURVES), 11, 3)
    for ax, (label, keys) in zip(axes, _CURVES.items(), strict=True):
        for i, (run, history) in enumerate(histories.items()):
            for style, key in zip(("-", "--", ":"), keys, strict=True):
                points = [(log["step"], log[key]) for log in history if key in log]
                if points:
                    ax.plot(
                        *np.transpose(points),
                        label=f"{visible(run, 40)}, {key}",
                        linestyle=style,
                        markevery=1 + len(points) // 8,
                        **_line(i),
                    )
        ax.set(xlabel="step", ylabel=label)
        _legend_beside(ax, ax.lines)
        _white_card(ax)
    axes[1].set_ylim(-0.03, 1.03)
    axes[0].figure.suptitle(visible(title, 120), color=_INK, parse_math=False)
    return axes


def intervals(
    summaries: dict[str, dict], metrics: Sequence[str], axes: Sequence[Axes] | None = None
) -> list[Axes]:
    """Metrics of many models, a row each: value and interval, and a tick for each seed where `seeds` has them.

    A metric that no model has gets no Axes, and a model without one an empty row. Raises ValueError for a name that is
    no metric's, with the nearest one.

    >>> accuracy = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    >>> (ax,) = bt.plots.intervals({"before": {"metrics": {"accuracy": accuracy}}}, ["accuracy", "right ways"])
    >>> ax.get_xlabel()
    'share of samples'
    """
    metrics = present(metrics, summaries)
    axes = _axes(axes, len(metrics), 2 + 2.6 * len(metrics), 0.9 + 0.27 * len(summaries))
    rows = range(len(summaries))
    for ax, metric in zip(axes, metrics, strict=True):
        measured = {}
        for row, summary in enumerate(summaries.values()):
            seeds = summary.get("seeds", {}).get(metric, [])
            ax.plot(seeds, [row] * len(seeds), "|", color=COLORS[1], markersize=9)
            if metric in summary["metrics"]:
                measured[row] = summary
        values, errors = _measured(measured, metric)
        ax.errorbar(values, list(measured), xerr=errors, fmt="o", color=COLORS[0], capsize=3)
        ax.set(title=metric, xlabel=unit(metric), ylim=(len(rows) - 0.5, -0.5))
        ax.set_yticks(rows, [visible(name, 40) for name in summaries] if ax is axes[0] else [])
        ax.locator_params(axis="x", nbins=3)  # a narrow panel has room for four numbers
        _white_card(ax)
    return axes


def frontier(series: dict[str, dict[str, dict]], x: str, y: str, ax: Axes | None = None) -> Axes:
    """One metric against another: a line for each series, through a labelled point for each of its summaries.

    >>> metrics = {name: {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9} for name in "xy"}
    >>> ax = bt.plots.frontier({"blur": {"0.2": {"metrics": metrics}}}, "x", "y")
    >>> ax.texts[0].get_text()
    '0.2'
    """
    (ax,) = _axes(ax, 1, 8, 4.5)
    for i, (name, points) in enumerate(series.items()):
        across, x_errors = _measured(points, x)
        up, y_errors = _measured(points, y)
        look = {"capsize": 2, "linewidth": 1, **_line(i)}
        ax.errorbar(across, up, y_errors, x_errors, label=visible(name, 40), **look)
        for label, *place in zip(points, across, up, strict=True):
            ax.annotate(visible(label, 40), place, (5, 5), textcoords="offset points", size=8)
    ax.set(xlabel=f"{x}, {unit(x)}", ylabel=f"{y}, {unit(y)}")
    _legend_beside(ax, ax.containers)
    _white_card(ax)
    return ax


def _axes(axes, n, width, height):
    """The Axes that are given, or n of a new figure (inches)."""
    if axes is None:
        axes = plt.subplots(1, n, figsize=(width, height), layout="constrained")[1]
    return list(np.ravel(axes))


def _white_card(ax):
    """The look of what is drawn, also in the user's own dark style."""
    ax.figure.set_facecolor("white")
    ax.set(facecolor="white", axisbelow=True)
    ax.grid(color="#dddddd")
    ax.spines[:].set_color("#dddddd")
    ax.tick_params(colors=_INK)
    for text in ax.findobj(Text):
        text.set(color=_INK, parse_math=False)


def _legend_beside(ax, handles):
    ax.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(1, 1),
        handlelength=3,
        frameon=False,
        fontsize=8,
    )


def _line(i):
    """The look of line i: the first 30 differ."""
    return {"color": COLORS[i % 5], "marker": _MARKERS[i % 6]}


def _measured(summaries, metric):
    """(n,) values of a metric, and (2, n) how far their intervals reach below and above them."""
    metrics = [summary["metrics"][metric] for summary in summaries.values()]
    value, low, high = (np.array([m[key] for m in metrics]) for key in ("value", "low", "high"))
    return value, np.abs([low - value, high - value])
