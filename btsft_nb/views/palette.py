"""The colours of series and values; those of the kinds of tokens are in `data.kinds`."""

from ..data.kinds import KIND_COLORS, Kind

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#555555")  # Okabe and Ito's, and gray
PLUS = COLORS[0]  # a value above 0
MINUS = COLORS[1]


def css_variables() -> str:
    """The palette for a style sheet, as red, green and blue: `rgb(var(--think) / 0.3)` is a tint."""
    colors = {kind.name.lower(): KIND_COLORS[kind] for kind in Kind}
    colors |= {"plus": PLUS, "minus": MINUS}
    variables = [f"--{name}: {' '.join(channels(color))};" for name, color in colors.items()]
    return f":host {{ {' '.join(variables)} }}"


def channels(color: str) -> list[str]:
    """Red, green and blue, from 0 to 255, of a colour as in `#0072b2`."""
    return [str(channel) for channel in bytes.fromhex(color[1:])]
