"""The inspector where no widget can run: HTML that reads without script and without colour, and works offline.

It shows the kind of each token, whether it is blurred, and one number. Text from a data set is hostile: Jinja escapes
it in text and attributes, and as JSON it goes into the script without a single `<`. Colours are inline, as style sheets
are lost in notebooks that are not trusted, and tints, for light and dark pages.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader

from ..data.kinds import KIND_COLORS, Kind

_FOLDER = Path(__file__).parent
_TEMPLATES = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True)


def static_view(
    data: dict, dials: dict, values: np.ndarray, blurred: np.ndarray, share: str
) -> str:
    """The tokens of an example as HTML, each in the tint of its kind with its number below it, and a legend.

    Args:
        data: what `browser_data` returns.
        dials: traits of the inspector.
        values: (T,) or (2, T), as `TokenInspector.values` returns them; only so many tokens are shown.
        blurred: (T,) bool.
        share: how many are blurred, in words.
    """
    kinds = [Kind(kind).name.lower() for kind in data["kinds"]]
    tokens = []
    for i, value in enumerate(values.T):
        hint = f"{i}: {kinds[i]}{', blurred' if blurred[i] else ''}"
        if dials["view"] != "kind":
            number = _number(value)
            hint += f", {dials['view']} {number}"
        else:  # at its first token
            number = kinds[i] if i == 0 or kinds[i] != kinds[i - 1] else ""
        is_faint = blurred[i] or kinds[i] == "prompt"
        tokens.append(
            {
                "text": data["texts"][i],
                "kind": kinds[i],
                "is_blurred": blurred[i],
                "tint": "1a" if is_faint else "4d",
                "number": number,
                "hint": hint,
            }
        )
    colors = {kind.name.lower(): color for kind, color in KIND_COLORS.items()}
    context = {"data": data, "tokens": tokens, "kinds": kinds, "colors": colors, "share": share}
    return _TEMPLATES.get_template("static_view.html").render(dials | context)


def with_script(static: str, state: dict) -> str:
    """The static view, and a script that puts the inspector in its place; `state` is what the script needs."""
    source = (_FOLDER / "inspector.js").read_text(encoding="utf-8")
    text = json.dumps(state, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    key = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    script = f'<script type="module">\n{source}\nmount("{key}", {text});\n</script>'
    return f'<div data-btsft="{key}">{static}</div>{script}'


def page(html: str, title: str) -> str:
    """A whole page of it, in the reader's own light or dark."""
    return _TEMPLATES.get_template("page.html").render(view=html, title=title)


def _number(value: np.ndarray) -> str:
    """What stands under a token."""
    if value.ndim:
        return "+".join(f"{1000 * part:.1f}" for part in value)
    if not np.isfinite(value):
        return ""
    return "\u22480" if 0 < abs(value) < 0.005 else f"{value + 0:.2g}"
