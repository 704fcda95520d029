"""Numbers and choices checked by name."""

import difflib
import math
from numbers import Integral, Real


def check_number(name, value, low, high, kind=Real):
    """Raises ValueError for a value that is no finite number from `low` to `high`.

    Args:
        kind: Real, or Integral for whole numbers.

    >>> check_number("threshold", 1.5, 0, 1)
    Traceback (most recent call last):
    ...
    ValueError: threshold must be a number between 0 and 1, got 1.5
    """
    is_number = isinstance(value, kind) and not isinstance(value, bool)
    if not is_number or not low <= value <= high or not math.isfinite(value):
        noun = "whole number" if kind is Integral else "number"
        bounds = f"of at least {low}" if high == math.inf else f"between {low} and {high}"
        raise ValueError(f"{name} must be a {noun} {bounds}, got {value!r}")


def check_choice(name, value, known):
    """Raises ValueError for a value that is none of the known ones.

    >>> check_choice("unit", "letter", ("token", "word"))
    Traceback (most recent call last):
    ...
    ValueError: unit must be one of 'token', 'word', got 'letter'
    """
    if value not in known:
        choices = ", ".join(map(repr, known))
        raise ValueError(f"{name} must be one of {choices}, got {value!r}")


def check_keys(keys, known, source=""):
    """Raises ValueError for a key that is not known, with the nearest one that is."""
    for key in keys:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), known, n=1)
            hint = f", did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"{source}unknown setting {key!r}{hint}")
