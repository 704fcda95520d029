"""Records -> matplotlib. Each function draws into the Axes that it is given, else into new ones, and returns them.

The card is white on any page, and nothing depends on colour alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties, findfont, get_font

from ..data.kinds import KIND_COLORS  # noqa: F401, beside COLORS for figures of a notebook's own
from ..text import visible
from .palette import COLORS

_INK = "#222222"
_FAINT = "#666666"
_STYLE = {
    "font.size": 9,
    "text.color": _INK,
    "text.parse_math": False,
    "lines.markersize": 5,
    "axes.titlesize": 10,
    "axes.titlecolor": _INK,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "legend.fontsize": 8,
}
_HATCHES = ("", "//", "..", "xx", "\\\\", "--")
_MARKERS = "osD^vP"
_UNITS = {  # metrics that are no share of samples
    "ways of thinking": "ways per prompt",
    "right ways": "ways per prompt",
    "pass": "share of prompts",
    "majority": "share of prompts",
    "way entropy": "bits",
    "self-BLEU": "0 to 1",
    "distinct-2": "share of word pairs",
    "training 4-grams": "share of 4-grams",
}
_CURVES = {  # label of the axis -> key in the logs -> what it adds to the run's name
    "nll, nats per token": {"nll_think": ", think", "nll_answer": ", answer", "nll_tag": ", tag"},
    "share of thought tokens, or reward": {
        "blurred_share": ", blurred",
        "expected_reward": ", expected reward",
        "format_reward": ", reward of argmax",
    },
}


def lengths(examples: Sequence[dict], ax: Axes | None = None) -> Axes:
    """How long the examples are: the share that a limit on the length would keep whole.

    >>> ax = bt.plots.lengths([{"input_ids": [1, 2, 3]}, {"input_ids": [1] * 9}])
    >>> ax.get_xlabel()
    'tokens'
    """
    with _panels(ax, 1, 5, 2.6, "both") as (ax,):
        ax.ecdf([len(example["input_ids"]) for example in examples], color=COLORS[0])
        ax.set(xlabel="tokens", ylabel="share of examples\nup to that length", ylim=(-0.03, 1.03))
    return ax


def training_curves(
    histories: dict[str, list], title: str = "", axes: Sequence[Axes] | None = None
) -> list[Axes]:
    """Training logs by run, in two Axes: nll by kind; blurred share and format rewards.

    >>> log = [{"step": 1, "nll_think": 2.0, "blurred_share": 0.2}, {"step": 2, "nll_think": 1.5}]
    >>> nll, shares = bt.plots.training_curves({"run": log})
    >>> nll.lines[0].get_xydata().tolist()
    [[1.0, 2.0], [2.0, 1.5]]
    """
    with _panels(axes, len(_CURVES), 11, 3) as axes:
        for ax, (label, keys) in zip(axes, _CURVES.items(), strict=True):
            for i, (run, history) in enumerate(histories.items()):
                for style, (key, suffix) in zip(("-", "--", ":"), keys.items(), strict=True):
                    steps = [log["step"] for log in history if key in log]
                    values = [log[key] for log in history if key in log]
                    if steps:
                        look = {"linestyle": style, "markevery": 1 + len(steps) // 8, **_line(i)}
                        ax.plot(steps, values, label=_name(run) + suffix, **look)
            ax.set(xlabel="step", ylabel=label, ylim=None if "nats" in label else (-0.03, 1.03))
            _legend_beside(ax, ax.lines)
        axes[0].figure.suptitle(_name(title, 120), size=10)
    return axes


def ways(summaries: dict[str, dict], ax: Axes | None = None) -> Axes:
    """The share of each way of thinking among the samples of several models.

    Raises:
        ValueError: the summaries have no ways.

    >>> ax = bt.plots.ways({"before": {"ways": {"split": 3, "guess": 1}, "samples": 4}})
    >>> [text.get_text() for text in ax.get_legend().texts]
    ['guess', 'split']
    """
    names = sorted({way for summary in summaries.values() for way in summary["ways"]})
    if not names:
        raise ValueError("no ways of thinking in the summaries: give evaluate a way_of")
    with _panels(ax, 1, 9, 1 + 0.4 * len(summaries), "x") as (ax,):
        rows = range(len(summaries))
        left = np.zeros(len(summaries))
        for i, name in enumerate(names):
            shares = [s["ways"].get(name, 0) / s["samples"] for s in summaries.values()]
            bars = ax.barh(rows, shares, 0.7, left, label=_name(name), **_fill(i))
            labels = [f"{share:.0%}" if share > 0.04 else "" for share in shares]
            card = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
            ax.bar_label(bars, labels, label_type="center", size=8, bbox=card)
            left += shares
        ax.set_yticks(*_names(summaries), parse_math=False)
        ax.set(xlim=(0, 1), xlabel="share of samples", ylabel="model")
        ax.invert_yaxis()
        ax.legend(handles=ax.containers, ncols=5, loc="lower left", bbox_to_anchor=(0, 1))
    return ax


def intervals(
    summaries: dict[str, dict], metrics: Sequence[str], axes: Sequence[Axes] | None = None
) -> list[Axes]:
    """Metrics of many models, a row each: value and interval, and a tick for each seed where `seeds` has them.

    >>> accuracy = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9}
    >>> (ax,) = bt.plots.intervals({"before": {"metrics": {"accuracy": accuracy}}}, ["accuracy"])
    >>> ax.get_xlabel()
    'share of samples'
    """
    height = 0.9 + 0.27 * len(summaries)
    with _panels(axes, len(metrics), 2 + 2.6 * len(metrics), height, "x") as axes:
        for ax, metric in zip(axes, metrics, strict=True):
            for row, summary in enumerate(summaries.values()):
                seeds = summary.get("seeds", {}).get(metric, [])
                ax.plot(seeds, [row] * len(seeds), "|", color=COLORS[1], markersize=9)
            values, errors = _measured(summaries, metric)
            rows = range(len(values))
            ax.errorbar(values, rows, xerr=errors, fmt="o", color=COLORS[0], capsize=3)
            ax.set_yticks(rows, [""] * len(rows))
            ax.set(title=metric, xlabel=_unit(metric), ylim=(len(values) - 0.5, -0.5))
        axes[0].set_yticks(*_names(summaries), parse_math=False)
        axes[0].set_ylabel("model")
    return axes


def frontier(series: dict[str, dict[str, dict]], x: str, y: str, ax: Axes | None = None) -> Axes:
    """One metric against another: a line for each series, through a labelled point for each of its summaries.

    >>> metrics = {name: {"value": 0.5, "low": 0.4, "high": 0.6, "n": 9} for name in "xy"}
    >>> ax = bt.plots.frontier({"blur": {"0.2": {"metrics": metrics}}}, "x", "y")
    >>> ax.texts[0].get_text()
    '0.2'
    """
    with _panels(ax, 1, 8, 4.5, "both") as (ax,):
        for i, (name, points) in enumerate(series.items()):
            across, x_errors = _measured(points, x)
            up, y_errors = _measured(points, y)
            bars = {"xerr": x_errors, "yerr": y_errors, "elinewidth": 0.7, "capsize": 2}
            ax.errorbar(across, up, label=_name(name), linewidth=1, **bars, **_line(i))
            beside = {"xytext": (5, 5), "textcoords": "offset points", "size": 7}
            for label, *place in zip(points, across, up, strict=True):
                ax.annotate(_name(label), place, parse_math=False, **beside)
        _legend_beside(ax, ax.containers)
        ax.set(xlabel=f"{x}, {_unit(x)}", ylabel=f"{y}, {_unit(y)}")
    return ax


@contextmanager
def _panels(
    axes: Axes | Sequence[Axes] | None, n: int, width: float, height: float, grid: str = "y"
) -> Iterator[list[Axes]]:
    """The n Axes that are given, or those of a new figure (inches), in our style while they are drawn."""
    if (
        axes is None
    ):  # outside the style, whose end would undo what a backend sets when it is loaded
        size = {"figsize": (width, height), "dpi": 100}
        axes = plt.subplots(1, n, layout="constrained", **size)[1]
    axes = list(np.ravel(axes))
    if len(axes) != n:
        raise ValueError(f"expected {n} Axes, got {len(axes)}")
    with plt.rc_context(_STYLE):
        for ax in axes:
            ax.figure.set_facecolor("white")
            ax.set(facecolor="white", axisbelow=True)
            ax.spines[:].set_color(_FAINT)
            ax.spines[["top", "right"]].set_visible(False)
            ax.tick_params(color=_FAINT, labelcolor=_INK, labelsize=8)
            plt.setp((ax.xaxis.label, ax.yaxis.label), color=_INK, size=9)
            ax.grid(axis=grid, color="#dddddd", linewidth=0.6, linestyle="-")
        yield axes


def _legend_beside(ax: Axes, handles: Sequence) -> None:
    ax.legend(handles=handles, handlelength=3, loc="upper left", bbox_to_anchor=(1, 1))


def _fill(i: int) -> dict:
    """The look of bar i: the first 30 differ."""
    return {"color": COLORS[i % 5], "hatch": _HATCHES[i % 6], "edgecolor": "white"}


def _line(i: int) -> dict:
    """The look of line i: the first 30 differ."""
    return {"color": COLORS[i % 5], "marker": _MARKERS[i % 6]}


def _names(summaries: dict[str, dict]) -> tuple[range, list[str]]:
    """The models along an axis: their places and their names."""
    return range(len(summaries)), [_name(name) for name in summaries]


def _measured(summaries: dict[str, dict], metric: str) -> tuple[np.ndarray, np.ndarray]:
    """(n,) values of a metric, and (2, n) how far their intervals reach below and above them."""
    metrics = [summary["metrics"][metric] for summary in summaries.values()]
    values = np.array([one["value"] for one in metrics])
    ends = np.array([[one["low"] for one in metrics], [one["high"] for one in metrics]])
    return values, np.abs(ends - values)


def _unit(metric: str) -> str:
    return _UNITS.get(metric.split("@")[0], "share of samples")


def _name(text: str, limit: int = 40) -> str:
    """One line that the font can draw: U+FFFD for what has no glyph."""
    font = get_font(findfont(FontProperties()))
    shown = visible(visible(text), limit)  # marks are longer than what they stand for
    return "".join(c if font.get_char_index(ord(c)) else "\ufffd" for c in shown) or " "
