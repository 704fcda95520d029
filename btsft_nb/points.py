"""The history of a playground: the shape of its points, and a static table of them."""

from html import escape
from math import isfinite

MEASURES = ("unique thoughts", "accuracy", "compliance")
_NUMBER, _METRIC = int | float, dict.fromkeys(("value", "low", "high"), int | float)
_HISTORY = [dict.fromkeys(("threshold", "beta", "anchor"), _NUMBER | None) | {
    "data": str | None,
    "seconds": _NUMBER,
    "metrics": dict.fromkeys((*MEASURES, ...), _METRIC),
    "ways": {...: int},
    "samples": [{"question": str, "text": str, "correct": bool, "problem": str | None}],
}]  # fmt: skip
_CELL = "text-align:left;vertical-align:top;padding:2px 8px;border:1px solid rgba(128,128,128,0.4)"


def to_html(history: list[dict]) -> str:
    """The points as a table without script or style sheet, each with its samples to unfold."""
    if not history:
        return "Playground: no points yet."
    rows = [["point", "data", "threshold", "beta", "anchor", *MEASURES, "samples"]]
    for i, point in enumerate(history):
        dials = [
            "-" if point[name] is None else escape(str(point[name]), quote=True)
            for name in rows[0][1:5]
        ]
        numbers = [
            "{value:.2f} [{low:.2f}, {high:.2f}]".format(**point["metrics"][name])
            for name in MEASURES
        ]
        texts = [
            f"{s['question']} {s['text']} ({'right' if s['correct'] else 'wrong'})"
            for s in point["samples"]
        ]
        lines = "".join(
            f"<code style='display:block;white-space:pre-wrap'>{escape(text, quote=True)}</code>"
            for text in texts
        )
        rows.append(
            [str(i), *dials, *numbers, f"<details><summary>{len(texts)}</summary>{lines}</details>"]
        )
    body = "".join(
        f"<tr>{''.join(f'<td style={_CELL!r}>{cell}</td>' for cell in row)}</tr>" for row in rows
    )
    return f"<table style='border-collapse:collapse;color:inherit'>{body}</table>"


def check(value: object, shape: object = _HISTORY, where: str = "history") -> None:
    """Raises ValueError, by point and key, for the first thing that is not of its shape: as `Playground` makes it.

    In a shape the key `...` stands for all others.
    """
    kind = type(shape) if isinstance(shape, (dict, list)) else shape
    odd = (isinstance(value, bool) and kind is not bool) or (
        isinstance(value, float) and not isfinite(value)
    )
    if odd or not isinstance(value, kind):
        raise ValueError(f"{where} is {value!r:.60}: {getattr(kind, '__name__', kind)} wanted")
    if kind is list:
        for i, item in enumerate(value):
            check(item, shape[0], f"{where}[{i}]")
    elif kind is dict:
        for key in (key for key in {**shape, **(value if ... in shape else {})} if key is not ...):
            if key not in value:
                raise ValueError(f"{where} lacks {key!r}")
            check(value[key], shape.get(key, shape.get(...)), f"{where}[{key!r}]")
