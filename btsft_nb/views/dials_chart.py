"""The chart beside the dials: diversity against accuracy and compliance."""

import base64
import io
from html import escape

from matplotlib.figure import Figure

X_METRIC = "unique thoughts"
Y_METRICS = ("accuracy", "compliance")


def dials_chart(points: list[dict]) -> bytes:
    """A PNG of points by their `label`, with the 95 % intervals of their `summary`, as far as they have the metrics."""
    figure = Figure((10, 3.6), dpi=100, layout="constrained")
    for axes, y_metric in zip(figure.subplots(1, 2), Y_METRICS, strict=True):
        for i, point in enumerate(points):
            metrics = point["summary"]["metrics"]
            if X_METRIC in metrics and y_metric in metrics:
                x = metrics[X_METRIC]
                y = metrics[y_metric]
                style = {"fmt": "o", "capsize": 2, "color": f"C{i % 10}", "label": point["label"]}
                axes.errorbar(x["value"], y["value"], _bar(y), _bar(x), **style)
        axes.set(xlabel=X_METRIC, ylabel=y_metric)
        axes.set_ylim(top=1.02)  # both are shares
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if labels:
        figure.legend(handles, labels, loc="outside right upper", fontsize=8)
    png = io.BytesIO()
    figure.savefig(png, facecolor="white")
    return png.getvalue()


def still_chart(points: list[dict]) -> str:
    """The chart as HTML, for pages on which no widget runs."""
    if not points:
        return "Sliders for threshold, anchor and beta, and a chart of what they do: run this cell to use them."
    labels = escape("; ".join(point["label"] for point in points), quote=True)
    picture = base64.b64encode(dials_chart(points)).decode()
    return f'<img alt="Diversity, accuracy and compliance of {labels}" src="data:image/png;base64,{picture}">'


def _bar(metric: dict) -> list[list[float]]:
    """Lengths below and above the value, as matplotlib takes them."""
    return [[metric["value"] - metric["low"]], [metric["high"] - metric["value"]]]
