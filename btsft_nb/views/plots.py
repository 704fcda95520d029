"""Records -> matplotlib. Each function draws into the Axes given, else into new ones of pyplot's, and returns them.

The card is white on any page, and nothing depends on colour alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.patches import Patch

from ..data.kinds import KIND_COLORS, Kind

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#555555")  # Okabe and Ito's, and gray
_INK, _FAINT = "#222222", "#666666"
_EDGES = (
    {"ec": _FAINT, "ls": "--"},
    {"ec": _INK, "lw": 1.6},
    {"ec": "white"},
    {"ec": _INK, "lw": 0.6},
)
_BOXES = {kind: {"fc": KIND_COLORS[kind], **edge} for kind, edge in zip(Kind, _EDGES, strict=True)}
_BLURRED = {"fc": "white", "ec": _FAINT, "ls": ":"}
# of 5 colours x 6 hatches or markers: the first 30 series differ
_FILLS = [
    {"fc": COLORS[i % 5], "hatch": ("", "//", "..", "xx", "\\\\", "--")[i % 6], "ec": "white"}
    for i in range(30)
]
_LINES = [{"color": COLORS[i % 5], "marker": "osD^vP"[i % 6]} for i in range(30)]
_ABOVE = {"ncols": 5, "loc": "lower left", "bbox_to_anchor": (0, 1)}
_UNITS = {
    "ways of thinking": "ways per prompt", "pass": "share of prompts", "majority": "share of prompts",
    "way entropy": "bits", "self-BLEU": "0 to 1", "distinct-2": "share of word pairs", "copied run": "share of words",
    "training 4-grams": "share of 4-grams",
}  # fmt: skip
_CURVES = {  # label of the axis: key in the logs, and what it adds to the run's name
    "nll of thoughts, nats per token": {"nll_think": ""},
    "nll, nats per token": {"nll_answer": ", answer", "nll_tag": ", tag"},
    "blurred share of thought tokens": {"blurred_share": ""},
    "format reward, mean over sequences": {
        "expected_reward": ", expected",
        "format_reward": ", argmax",
    },
}
_STYLE = {
    "font.size": 9, "text.color": _INK, "text.parse_math": False, "lines.markersize": 5, "axes.titlesize": 10,
    "axes.titlecolor": _INK, "axes.titlelocation": "left", "legend.frameon": False, "legend.fontsize": 8,
}  # fmt: skip


@contextmanager
def _panels(
    given: Axes | Sequence[Axes] | None, n: int, width: float, height: float, grid: str = "y"
) -> Iterator:
    """The n Axes given, or those of a new figure (inches), in the style. Raises ValueError for another number."""
    if (
        given is None
    ):  # before the style ends, which would undo what a backend sets when it is loaded
        given = plt.subplots(1, n, figsize=(width, height), dpi=100, layout="constrained")[1]
    axes = list(np.ravel(given))
    if len(axes) != n:
        raise ValueError(f"{len(axes)} Axes given, {n} wanted")
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


def _interval(metric: dict) -> list[list[float]]:
    return [[abs(metric["value"] - metric["low"])], [abs(metric["high"] - metric["value"])]]


def _unit(metric: str) -> str:
    return _UNITS.get(metric.split("@")[0], "share of samples")


def _shown(text: str, limit: int = 40, family: str | None = None) -> str:
    """One line that the font can draw: arrows for line ends and tabs, U+FFFD for what has no glyph or no ink."""
    font, text = (
        get_font(findfont(FontProperties(family))),
        text.replace("\n", "\u21b5").replace("\t", "\u21e5"),
    )
    text = text if len(text) <= limit else text[: limit - 1] + "\u2026"
    return (
        "".join(c if c.isprintable() and font.get_char_index(ord(c)) else "\ufffd" for c in text)
        or " "
    )


def lengths(examples: Sequence[dict], ax: Axes | None = None) -> Axes:
    """How long the examples are: the share that a limit on the length would keep whole."""
    with _panels(ax, 1, 5, 2.6, "both") as (ax,):
        ax.ecdf([len(example["input_ids"]) for example in examples], color=COLORS[0])
        ax.set(xlabel="tokens", ylabel="share of examples\nup to that length", ylim=(-0.03, 1.03))
    return ax


def kind_shares(examples: Sequence[dict], ax: Axes | None = None) -> Axes:
    """What the tokens of the examples are."""
    with _panels(ax, 1, 5, 2, "x") as (ax,):
        counts = np.bincount(
            np.concatenate([example["kinds"] for example in examples]), minlength=len(Kind)
        )
        for kind, share in zip(Kind, counts / counts.sum(), strict=True):
            ax.bar_label(
                ax.barh(kind.name.lower(), share, **_BOXES[kind]), [f"{share:.0%}"], padding=3
            )
        ax.set(
            xlabel="share of tokens", ylabel="kind", xlim=(0, 1.12 * counts.max() / counts.sum())
        )
        ax.invert_yaxis()
    return ax


def blurred_thought(
    tokens: Sequence[str],
    kinds: Sequence[int],
    draws: np.ndarray,
    thresholds: Sequence[float],
    ax: Axes | None = None,
) -> Axes:
    """(T,) tokens with their `Kind` and `blur.draws`, once for each threshold; a blurred token is struck out."""
    new, texts = ax is None, [_shown(token, 24, "monospace") for token in tokens]
    widths = np.array(
        [len(text) for text in texts], dtype=int
    )  # in characters, as all that follows
    with _panels(ax, 1, 9, 1) as (ax,):
        start, room = widths.cumsum() - widths, 13 * ax.get_window_extent().width / ax.figure.dpi
        line = np.unique(start // room, return_inverse=True)[1]
        x, step, n = (
            start - start[np.searchsorted(line, line)],
            line.max(initial=0) + 1.7,
            len(thresholds),
        )
        for row, threshold in enumerate(thresholds):
            y, blurred = line + step * row, draws < threshold
            for i, text in enumerate(texts):
                ax.barh(
                    y[i],
                    widths[i] - 0.15,
                    0.84,
                    x[i],
                    **(_BLURRED if blurred[i] else _BOXES[kinds[i]]),
                )
                look = {
                    "color": _FAINT if blurred[i] else "black",
                    "family": "monospace",
                    "size": 8,
                }
                ax.text(x[i] + widths[i] / 2, y[i], text, ha="center", va="center", **look)
            ax.hlines(
                y[blurred], x[blurred], (x + widths)[blurred] - 0.15, color=_FAINT, linewidth=1
            )
        labels = [
            f"{at:g}\n{(draws < at).sum()} of {np.isfinite(draws).sum()}" for at in thresholds
        ]
        ax.set_yticks(step * np.arange(n) + (step - 1.7) / 2, labels)
        ax.set(
            xlabel="tokens in reading order",
            ylabel="threshold,\nhow many blurred",
            xticks=[],
            frame_on=False,
        )
        ax.set(xlim=(-0.2, (x + widths).max(initial=1)), ylim=(step * n - 1.1, -0.6))
        ax.grid(False)
        handles = [
            Patch(label=kind.name.lower(), **box) for kind, box in _BOXES.items() if kind in kinds
        ]
        ax.legend(handles=[*handles, Patch(label="blurred", **_BLURRED)], **_ABOVE)
        if new:
            ax.figure.set_size_inches(9, 0.7 + 0.22 * step * n)
    return ax


def training_curves(
    histories: dict[str, list], title: str = "", axes: Sequence[Axes] | None = None
) -> list[Axes]:
    """Training logs by run, in four Axes: nll of thoughts, of answers and tags, blurred share, format rewards."""
    with _panels(axes, len(_CURVES), 13, 3) as axes:
        for ax, (label, keys) in zip(axes, _CURVES.items(), strict=True):
            lines = []
            for i, (run, history) in enumerate(histories.items()):
                for style, (key, suffix) in zip(("-", "--"), keys.items(), strict=False):
                    points = np.reshape(
                        [(log["step"], log[key]) for log in history if key in log], (-1, 2)
                    ).T
                    every = (
                        1 + points.shape[1] // 8
                    )  # each run has its markers at points of its own
                    look = {
                        "ls": style,
                        "markevery": (i * every // 4 % every, every),
                        **_LINES[i % 30],
                    }
                    lines += ax.plot(*points, label=_shown(run) + suffix, **look)
            ax.set(xlabel="step", ylabel=label, ylim=None if "nats" in label else (-0.03, 1.03))
            ax.legend(handles=lines, handlelength=3)
        axes[0].figure.suptitle(_shown(title, 120), size=10)
    return axes


def bars(
    summaries: dict[str, dict], metrics: Sequence[str], axes: Sequence[Axes] | None = None
) -> list[Axes]:
    """Metrics of several models, each metric in Axes of its own, with their intervals and values."""
    with _panels(axes, len(metrics), 1 + 2.5 * len(metrics), 3.2) as axes:
        for ax, metric in zip(axes, metrics, strict=True):
            for i, summary in enumerate(summaries.values()):
                found = summary["metrics"][metric]
                bar = ax.bar(
                    i,
                    found["value"],
                    0.75,
                    yerr=_interval(found),
                    ecolor=_INK,
                    capsize=3,
                    **_FILLS[i % 30],
                )
                ax.bar_label(bar, [f"{found['value']:.2f}"], size=8, padding=3)
            names = [_shown(name) for name in summaries]
            ax.set_xticks(
                range(len(names)),
                names,
                rotation=25,
                ha="right",
                rotation_mode="anchor",
                parse_math=False,
            )
            ax.set(title=metric, ylabel=_unit(metric))
    return axes


def ways(summaries: dict[str, dict], ax: Axes | None = None) -> Axes:
    """The share of each way of thinking among the samples of several models; ValueError where none is known."""
    names = sorted({way for summary in summaries.values() for way in summary["ways"]})
    if not names:
        raise ValueError("no ways of thinking in the summaries: give evaluate a way_of")
    with _panels(ax, 1, 9, 1 + 0.4 * len(summaries), "x") as (ax,):
        for row, summary in enumerate(summaries.values()):
            shares = np.array([summary["ways"].get(name, 0) for name in names]) / summary["samples"]
            for i, (share, left) in enumerate(zip(shares, shares.cumsum() - shares, strict=True)):
                bar, card = (
                    ax.barh(row, share, 0.7, left, **_FILLS[i % 30]),
                    {"fc": "white", "ec": "none", "pad": 1.5},
                )
                ax.bar_label(
                    bar,
                    [f"{share:.0%}" if share > 0.04 else ""],
                    label_type="center",
                    size=8,
                    bbox=card,
                )
        ax.set_yticks(range(len(summaries)), [_shown(name) for name in summaries], parse_math=False)
        ax.set(xlim=(0, 1), xlabel="share of samples", ylabel="model")
        ax.invert_yaxis()
        ax.legend(
            handles=[Patch(label=_shown(name), **_FILLS[i % 30]) for i, name in enumerate(names)],
            **_ABOVE,
        )
    return ax


def intervals(
    summaries: dict[str, dict], metrics: Sequence[str], axes: Sequence[Axes] | None = None
) -> list[Axes]:
    """Metrics of many models, a row each: value and interval, and a tick for each seed where `seeds` has them."""
    with _panels(
        axes, len(metrics), 2 + 2.6 * len(metrics), 0.9 + 0.27 * len(summaries), "x"
    ) as axes:
        for ax, metric in zip(axes, metrics, strict=True):
            for row, summary in enumerate(summaries.values()):
                found, seeds = summary["metrics"][metric], summary.get("seeds", {}).get(metric, [])
                ax.plot(seeds, [row] * len(seeds), "|", color=COLORS[1], markersize=9)
                ax.errorbar(
                    found["value"], row, xerr=_interval(found), fmt="o", color=COLORS[0], capsize=3
                )
            ax.set_yticks(range(len(summaries)), [""] * len(summaries))
            ax.set(title=metric, xlabel=_unit(metric), ylim=(len(summaries) - 0.5, -0.5))
        axes[0].set_yticks(
            range(len(summaries)), [_shown(name) for name in summaries], parse_math=False
        )
        axes[0].set_ylabel("model")
    return axes


def frontier(series: dict[str, dict[str, dict]], x: str, y: str, ax: Axes | None = None) -> Axes:
    """One metric against another: a line for each series, through a labelled point for each of its summaries."""
    with _panels(ax, 1, 8, 4.5, "both") as (ax,):
        for i, (name, points) in enumerate(series.items()):
            at = [[summary["metrics"][metric] for summary in points.values()] for metric in (x, y)]
            values = [[m["value"] for m in found] for found in at]
            ends = [np.hstack([_interval(m) for m in found]) for found in at]
            bars = {"elinewidth": 0.7, "capsize": 2, "linewidth": 1, "label": _shown(name)}
            ax.errorbar(*values, ends[1], ends[0], **bars, **_LINES[i % 30])
            for label, *place in zip(points, *values, strict=True):
                ax.annotate(
                    _shown(label),
                    place,
                    (5, 5),
                    textcoords="offset points",
                    size=7,
                    parse_math=False,
                )
        ax.legend(handles=ax.containers, loc="upper left", bbox_to_anchor=(1, 1))
        ax.set(xlabel=f"{x}, {_unit(x)}", ylabel=f"{y}, {_unit(y)}")
    return ax
