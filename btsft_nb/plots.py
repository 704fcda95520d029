"""Records -> matplotlib. Each function draws into a new figure and returns it; nothing depends on colour alone."""

import io
from collections.abc import Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .blur import Kind

KIND_COLORS = {Kind.PROMPT: "#d9d9d9", Kind.TAG: "#e69f00", Kind.THINK: "#9ecbf0", Kind.ANSWER: "#a5d8a7"}
_SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#555555")
_HATCHES = ("", "///", "...", "xx", "\\\\")
_CENTRE = {"ha": "center", "va": "center"}
_STYLES = ("-", "--")


class Picture(Figure):
    """A figure that a notebook shows without pyplot and its global state."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, dpi=100)
        return buffer.getvalue()


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Picture, np.ndarray]:
    figure = Picture(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _fill(i: int) -> dict:
    return {"color": _SERIES[i % 5], "hatch": _HATCHES[i % 5], "edgecolor": "white"}


def lengths_and_kinds(examples: Sequence[dict]) -> Picture:
    """How long the examples are, and what their tokens are."""
    figure, ((left, right),) = _figure(1, 2, 9, 2.8)
    left.hist([len(example["input_ids"]) for example in examples], bins=30, color=_SERIES[0])
    left.set(xlabel="tokens", ylabel="examples", title="Length")
    counts = np.bincount(np.concatenate([example["kinds"] for example in examples]), minlength=len(Kind))
    shares = counts / counts.sum()
    names = [kind.name.lower() for kind in Kind]
    bars = right.barh(names, shares, color=[KIND_COLORS[kind] for kind in Kind], edgecolor="#333333")
    right.bar_label(bars, [f"{share:.0%}" for share in shares], padding=3)
    right.set(xlabel="share of tokens", title="Kind", xlim=(0, shares.max() * 1.15))
    right.invert_yaxis()
    return figure


def blurred_thought(
    tokens: Sequence[str], kinds: Sequence[int], draws: np.ndarray, thresholds: Sequence[float]
) -> Picture:
    """The same tokens at several thresholds, one under the other; a blurred token is struck out.

    Args:
        tokens, kinds, draws: (T,) text, `Kind` and draw of each token, as `blur.draws` gives it.
    """
    figure, axes = _figure(len(thresholds), 1, 9, 0.2 + 0.75 * len(thresholds))
    for ax, threshold in zip(axes[:, 0], thresholds, strict=True):
        lines = _draw_tokens(ax, tokens, kinds, draws < threshold)
        blurred, thought = int((draws < threshold).sum()), int(np.isfinite(draws).sum())
        ax.set_title(f"threshold {threshold:g}: {blurred} of {thought} blurred", loc="left", size=9)
    figure.set_size_inches(9, len(thresholds) * (0.3 + 0.24 * lines))
    return figure


def _draw_tokens(ax: Axes, tokens: Sequence[str], kinds: Sequence[int], blurred: np.ndarray, width: int = 104) -> int:
    """Tokens as boxes of monospaced text, wrapped at `width` characters; returns the number of lines."""
    x, line = 0, 0
    for token, kind, is_blurred in zip(tokens, kinds, blurred, strict=True):
        text = token.replace("\n", "\u21b5").replace("\t", "\u21e5") or " "
        if x + len(text) > width:
            x, line = 0, line + 1
        box, ink = ("white", "#999999") if is_blurred else (KIND_COLORS[kind], "black")
        ax.barh(line, len(text) - 0.08, 0.82, x, align="center", color=box, edgecolor="#999999")
        ax.text(x + len(text) / 2, line, text, color=ink, family="monospace", size=8, parse_math=False, **_CENTRE)
        if is_blurred:
            ax.plot([x, x + len(text) - 0.1], [line, line], color="#777777", lw=1)
        x += len(text)
    ax.set(xlim=(0, width), ylim=(line + 0.5, -0.5))
    ax.axis("off")
    return line + 1


def training_curves(histories: dict[str, list[dict]], title: str = "") -> Picture:
    """Training logs by run: nll of each kind, blurred share, and the expected and argmax format reward."""
    panels = {
        "nll of thought tokens": {"nll_think": ""},
        "nll of answer and tag tokens": {"nll_answer": ", answer", "nll_tag": ", tag"},
        "share of thought tokens blurred": {"blurred_share": ""},
        "format reward": {"expected_reward": ", expected", "format_reward": ", argmax"},
    }
    figure, axes = _figure(1, 4, 13, 2.9)
    for ax, (panel, keys) in zip(axes.flat, panels.items(), strict=True):
        for color, (run, history) in zip(cycle(_SERIES), histories.items(), strict=False):
            logs = [entry for entry in history if "nll_think" in entry or "blurred_share" in entry]
            for style, (key, name) in zip(_STYLES, keys.items(), strict=False):
                points = [(entry["step"], entry[key]) for entry in logs if key in entry]
                ax.plot(*np.reshape(points, (-1, 2)).T, linestyle=style, color=color, label=run + name, marker=".")
        ax.set_title(panel, size=10)
        ax.set_xlabel("step")
        ax.legend(fontsize=7)
        if "reward" in panel or "share" in panel:
            ax.set_ylim(-0.03, 1.03)
    figure.suptitle(title, size=10)
    return figure


def bars(summaries: dict[str, dict], metrics: Sequence[str]) -> Picture:
    """Metrics of several models side by side, with their intervals and values."""
    figure, axes = _figure(1, len(metrics), 1 + 2.6 * len(metrics), 3.2)
    for ax, metric in zip(axes.flat, metrics, strict=True):
        for i, summary in enumerate(summaries.values()):
            value, low, high = (summary["metrics"][metric][key] for key in ("value", "low", "high"))
            error = [[value - low], [high - value]]
            ax.bar(i, value, 0.75, yerr=error, capsize=4, **_fill(i))
            ax.text(i, high, f" {value:.2f}", ha="center", va="bottom", size=8)
        ax.set_xticks(range(len(summaries)), summaries, rotation=25, ha="right", size=8)
        ax.set_title(metric, size=10)
        ax.margins(y=0.12)
    return figure


def ways(summaries: dict[str, dict]) -> Picture:
    """The share of each way of thinking among the samples of several models."""
    names = sorted({way for summary in summaries.values() for way in summary["ways"]})
    figure, ((ax,),) = _figure(1, 1, 9, 0.8 + 0.45 * len(summaries))
    for row, summary in enumerate(summaries.values()):
        left, total = 0.0, sum(summary["ways"].values())
        for i, name in enumerate(names):
            share = summary["ways"].get(name, 0) / total
            ax.barh(row, share, 0.7, left, label=name if row == 0 else None, alpha=0.75, **_fill(i))
            if share > 0.04:
                ax.text(left + share / 2, row, f"{share:.0%}", size=8, backgroundcolor="white", **_CENTRE)
            left += share
    ax.set_yticks(range(len(summaries)), summaries)
    ax.invert_yaxis()
    ax.set(xlim=(0, 1), xlabel="share of samples")
    ax.legend(ncols=len(names), bbox_to_anchor=(0.5, 1), loc="lower center", fontsize=8, frameon=False)
    return figure


def tag_probabilities(tokens: Sequence[str], kinds: Sequence[int], score: dict, title: str = "") -> Picture:
    """The probability of each think tag along a sequence, where the data has them, and the expected reward."""
    start = int(np.argmax(np.asarray(kinds) != Kind.PROMPT))
    figure, ((ax,),) = _figure(1, 1, 11, 2.6)
    position = np.arange(len(tokens) - start)
    for name, style, color, p in zip(("<think>", "</think>"), ("o-", "s--"), _SERIES, score["tags"], strict=False):
        ax.plot(position, p[start:], style, ms=4, color=color, label=f"p({name})")
    for at in np.flatnonzero(np.asarray(kinds[start:]) == Kind.TAG):
        ax.axvline(at, color="#bbbbbb", lw=6, alpha=0.5, zorder=0)
    labels = [token.replace("\n", "\u21b5") for token in tokens[start:]]
    ax.set_xticks(position, labels, rotation=90, family="monospace", size=7, parse_math=False)
    ax.set(ylim=(-0.03, 1.05), ylabel="probability")
    ax.set_title(f"{title}  expected reward R = {score['expected_reward']:.3f}  (gray: tags of the data)", size=10)
    ax.legend(fontsize=8)
    return figure
