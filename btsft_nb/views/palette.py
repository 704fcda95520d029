"""The colours of series and values; those of the kinds of tokens are in `data.kinds`."""

from ..data.kinds import KIND_COLORS

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#555555")  # Okabe and Ito's, and gray
PLUS = COLORS[0]  # a value above 0
MINUS = COLORS[1]


def css_variables() -> str:
    """The palette for a style sheet: `var(--think)`, `var(--plus)`."""
    colors = {kind.name.lower(): color for kind, color in KIND_COLORS.items()}
    colors |= {"plus": PLUS, "minus": MINUS}
    return ":host {" + "".join(f"--{name}: {color};" for name, color in colors.items()) + "}\n"
