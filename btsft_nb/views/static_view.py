"""The inspector where no widget can run: HTML that reads without script and without colour, and asks for nothing.

Text from a data set is hostile: it goes through `html.escape` with quotes into text and attributes, and as JSON without
a single `<` into the script. Colours are inline, and tints of whatever stands behind, so that light and dark pages both
do; a line above or below and a number repeat what they say.
"""

import hashlib
import json
from html import escape
from pathlib import Path

import numpy as np

from ..data.kinds import Kind

_PLUS, _MINUS = "0,114,178", "213,94,0"  # Okabe and Ito's blue and vermilion
_KIND_RGB = {
    Kind.PROMPT: "128,128,128",
    Kind.TAG: "230,159,0",
    Kind.THINK: "86,180,233",
    Kind.ANSWER: "0,158,115",
}
_KIND_LINE = {
    Kind.PROMPT: "none",
    Kind.TAG: "double 3px",
    Kind.THINK: "dotted 2px",
    Kind.ANSWER: "solid 2px",
}
_BOX = "display:inline-block;text-align:center;vertical-align:top;padding:0 2px;margin:1px 0;white-space:pre-wrap"
_FRAME = (
    "display:block;font-family:monospace;font-size:13px;line-height:1.5;overflow-wrap:anywhere;white-space:normal;"
    "background:transparent;color:inherit;padding:0"
)


def static_view(
    data: dict,
    view: str,
    values: np.ndarray,
    blurred: np.ndarray,
    notes: list[str],
    limit: int | None = None,
) -> str:
    """The tokens of an example as HTML, each with its number below it and its tint, and a legend.

    Args:
        data: `texts`, `kinds` and `id`, as the inspector sends them to the browser.
        values: (T,) or (2, T), as `TokenInspector.values` gives them. blurred: (T,) bool.
        notes: lines of the legend, as text. limit: how many tokens to show; the others are counted.
    """
    shown = len(data["texts"][:limit])
    finite = np.abs(values[np.isfinite(values)])
    top = 1.0 if view in ("probability", "blur") else float(finite.max(initial=0)) or 1.0
    tokens = "".join(_token(data, i, view, values[..., i], blurred[i], top) for i in range(shown))
    if shown < len(data["texts"]):
        notes = [
            *notes,
            f"the first {shown:,} of {len(data['texts']):,} tokens; to_html(path) writes a page with all",
        ]
    kinds = np.asarray(data["kinds"])
    legend = " ".join(
        f'<span style="{_kind_style(kind)}">&nbsp;{kind.name.lower()} {(kinds == kind).sum()}&nbsp;</span>'
        for kind in Kind
    )
    lines = "<br>".join(
        [
            f"<b>{escape(data['id'], quote=True)}</b>",
            legend,
            *(escape(n, quote=True) for n in notes),
        ]
    )
    # MathJax, which would typeset what stands between two dollars, leaves <code> alone
    return f'<code style="{_FRAME}">{lines}</code><code style="{_FRAME}">{tokens}</code>'


def with_script(static: str, state: dict) -> str:
    """The static view, and a script that puts the inspector in its place; `state` holds its traits and examples."""
    source = Path(__file__).with_name("inspector.js").read_text(encoding="utf-8")
    text = json.dumps(state, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    key = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return f'<div data-btsft="{key}">{static}</div><script type="module">\n{source}\nmount("{key}", {text});\n</script>'


def page(html: str, title: str) -> str:
    """A whole page of it, in the reader's own light or dark."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><title>{escape(title, quote=True)}</title></head>'
        f'<body style="max-width:1100px;margin:1em auto;padding:0 1em">{html}</body></html>\n'
    )


def _kind_style(kind: Kind) -> str:
    return f"border-bottom:{_KIND_LINE[kind]} rgb({_KIND_RGB[kind]});background:rgba({_KIND_RGB[kind]},0.3)"


def _bar(side: str, part: float, top: float, rgb: str) -> str:
    return f"border-{side}:solid {int(np.ceil(4 * abs(part) / top - 0.05))}px rgb({rgb});"


def _style(kind: Kind, view: str, value: np.ndarray, top: float) -> str:
    if view == "kind":
        return _kind_style(kind)
    if view == "gradient":
        strength = 0.5 * float(value.sum()) / top
        return f"{_bar('bottom', value[0], top, _MINUS)}{_bar('top', value[1], top, _PLUS)}" + (
            f"background:rgba({_PLUS if value[1] > value[0] else _MINUS},{min(strength, 0.5):.2f})"
        )
    if not np.isfinite(value) or value == 0:
        return ""
    rgb, side = (_MINUS, "top") if value < 0 else (_PLUS, "bottom")
    return (
        f"{_bar(side, value, top, rgb)}background:rgba({rgb},{0.5 * abs(float(value)) / top:.2f})"
    )


def _token(data: dict, i: int, view: str, value: np.ndarray, blurred: bool, top: float) -> str:
    kind, text = Kind(data["kinds"][i]), data["texts"][i]
    if view == "kind":
        under = "blurred" if blurred else kind.name.lower()
    elif view == "gradient":
        under = (
            "+".join(f"{1000 * part:.1f}" for part in value) if value.max() >= 5e-5 else "\u22480"
        )
    else:
        under = _brief(value)
    inner = escape(text, quote=True) or "&nbsp;"
    inner = f"<s>{inner}</s>" if blurred else inner
    faint = ";opacity:0.75" if blurred or kind == Kind.PROMPT else ""
    hint = escape(
        f"{i}: {kind.name.lower()}{', blurred' * bool(blurred)}, {view} {under}", quote=True
    )
    style = f"{_BOX};{_style(kind, view, value, top)}{faint}"
    token = (
        f'<span style="{style}" title="{hint}"><bdi>{inner}</bdi><br><small>{under}</small></span>'
    )
    return token + "<br>" * ("\u21b5" in text)


def _brief(value: float) -> str:
    if not np.isfinite(value):
        return ""
    return "\u22480" if 0 < abs(value) < 0.005 else f"{value + 0:.2g}"
