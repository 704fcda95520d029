"""The inspector where no widget can run: HTML that reads without script and without colour, and works offline.

It shows the kind of each token, whether it is blurred, and one number. Text from a data set is hostile: it goes through
`html.escape` with quotes into text and attributes, and as JSON without a single `<` into the script. Colours are
inline, as style sheets are lost in notebooks that are not trusted, and tints, for light and dark pages.
"""

import hashlib
import json
from html import escape
from pathlib import Path

import numpy as np

from ..data.kinds import KIND_COLORS, Kind
from .palette import channels

_KIND_LINES = {
    Kind.PROMPT: "none",
    Kind.TAG: "double 3px",
    Kind.THINK: "dotted 2px",
    Kind.ANSWER: "solid 2px",
}
_TOKEN = (
    "display:inline-block;text-align:center;vertical-align:top;padding:0 2px;margin:1px 0;"
    "white-space:pre-wrap;border-left:1px solid rgba(128,128,128,0.35)"
)
_FRAME = (
    "display:block;font-family:monospace;font-size:13px;line-height:1.5;overflow-wrap:anywhere;"
    "white-space:normal;background:transparent;color:inherit;padding:0"
)


def static_view(
    data: dict,
    view: str,
    values: np.ndarray,
    blurred: np.ndarray,
    notes: list[str],
    limit: int | None = None,
) -> str:
    """The tokens of an example as HTML, each in the tint of its kind with its number below it, and a legend.

    Args:
        data: what `browser_data` returns.
        values: (T,) or (2, T), as `TokenInspector.values` returns them.
        blurred: (T,) bool.
        notes: lines of the legend, as text.
        limit: how many tokens to show; the others are counted.
    """
    texts = data["texts"][:limit]
    if len(texts) < len(data["texts"]):
        count = f"the first {len(texts):,} of {len(data['texts']):,} tokens"
        notes = [*notes, f"{count}; to_html(path) writes a page with all"]
    tokens = []
    for i, text in enumerate(texts):
        kind = Kind(data["kinds"][i])
        hint = f"{i}: {kind.name.lower()}{', blurred' if blurred[i] else ''}"
        if view == "kind":  # at its first token
            begins = i == 0 or data["kinds"][i - 1] != kind
            number = kind.name.lower() if begins else "&nbsp;"
        else:
            number = _number(view, values[..., i])
            hint += f", {view} {number}"
        shown = escape(text, quote=True) or "&nbsp;"
        if blurred[i]:
            shown = f"<s>{shown}</s>"
        style = f"{_TOKEN};{_kind_style(kind, blurred[i])}"
        inside = f"<bdi>{shown}</bdi><br><small>{number}</small>"
        tokens.append(f'<span style="{style}" title="{hint}">{inside}</span>')
        if "\u21b5" in text:
            tokens.append("<br>")
    legend = [f"<b>{escape(data['id'], quote=True)}</b>", _kind_legend(data["kinds"])]
    legend += [escape(note, quote=True) for note in notes]
    # MathJax, which would typeset what stands between two dollars, leaves <code> alone
    return f'<code style="{_FRAME}">{"<br>".join(legend)}</code><code style="{_FRAME}">{"".join(tokens)}</code>'


def with_script(static: str, state: dict) -> str:
    """The static view, and a script that puts the inspector in its place; `state` is what the script needs."""
    source = Path(__file__).with_name("inspector.js").read_text(encoding="utf-8")
    text = json.dumps(state, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    key = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    script = f'<script type="module">\n{source}\nmount("{key}", {text});\n</script>'
    return f'<div data-btsft="{key}">{static}</div>{script}'


def page(html: str, title: str) -> str:
    """A whole page of it, in the reader's own light or dark."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title, quote=True)}</title></head>"
        f'<body style="max-width:1100px;margin:1em auto;padding:0 1em">{html}</body></html>\n'
    )


def _kind_legend(kinds: list[int]) -> str:
    return " ".join(
        f'<span style="{_kind_style(kind)}">&nbsp;{kind.name.lower()} {kinds.count(kind)}&nbsp;</span>'
        for kind in Kind
    )


def _kind_style(kind: Kind, is_blurred: bool = False) -> str:
    rgb = ",".join(channels(KIND_COLORS[kind]))
    opacity = 0.1 if is_blurred or kind == Kind.PROMPT else 0.3
    return f"border-bottom:{_KIND_LINES[kind]} rgb({rgb});background:rgba({rgb},{opacity})"


def _number(view: str, value: np.ndarray) -> str:
    """What stands under a token."""
    if view == "gradient":
        return "+".join(f"{1000 * part:.1f}" for part in value)
    if not np.isfinite(value):
        return ""
    return "\u22480" if 0 < abs(value) < 0.005 else f"{value + 0:.2g}"
