"""The inspector where no widget can run: HTML that reads without script and without colour, and works offline.

It shows the kind of each token, whether it is blurred, and one number. Text from a data set is hostile: Jinja escapes
it in text and attributes, and as JSON it goes into the script without a single `<`. Colours are inline, as style sheets
are lost in notebooks that are not trusted, and tints, for light and dark pages.
"""

import json
import zlib
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader

from .palette import KINDS

_FOLDER = Path(__file__).parent
_TEMPLATES = Environment(loader=FileSystemLoader(_FOLDER), autoescape=True)


def static_view(inspector, limit=None):
    """The first tokens as HTML, each in the tint of its kind with its number below it, and a legend."""
    names = list(KINDS)
    kinds = [names[kind] for kind in inspector.data["kinds"]]
    numbers = [_number(value) for value in inspector.values().T[:limit]]
    template = _TEMPLATES.get_template("static_view.html")
    return template.render(inspector=inspector, numbers=numbers, kinds=kinds, colors=KINDS)


def with_script(static, state):
    """The static view, and a script that puts the inspector in its place; `state` is what the script needs."""
    source = (_FOLDER / "inspector.js").read_text(encoding="utf-8")
    text = json.dumps(state, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    key = zlib.crc32(text.encode())
    script = f'<script type="module">\n{source}\nmount("{key}", {text});\n</script>'
    return f'<div data-btsft="{key}">{static}</div>{script}'


def page(html, title):
    """A whole page of it, in the reader's own light or dark."""
    return _TEMPLATES.get_template("page.html").render(view=html, title=title)


def _number(value):
    """What stands under a token."""
    if value.ndim:
        return "+".join(f"{1000 * part:.1f}" for part in value)
    if not np.isfinite(value):
        return ""
    return "\u22480" if 0 < abs(value) < 0.005 else f"{value + 0:.2g}"
