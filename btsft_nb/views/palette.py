"""The colours of series and values; those of the kinds of tokens are in `data.kinds`."""

from ..data.kinds import KIND_COLORS

KINDS = {kind.name.lower(): color for kind, color in KIND_COLORS.items()}
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#555555")  # Okabe and Ito's, and gray


def css_variables():
    """The palette for a style sheet: `var(--think)`, `var(--plus)`."""
    colors = {**KINDS, "plus": COLORS[0], "minus": COLORS[1]}  # values above and below 0
    return ":host {" + "".join(f"--{name}: {color};" for name, color in colors.items()) + "}\n"
