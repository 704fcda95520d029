"""Numbers and choices checked by name."""

import difflib
import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real


def check_number(name: str, value: object, low: float, high: float, kind: type = Real) -> None:
    """Raises ValueError, by name, for a number out of its range, or not of its kind: Real or Integral."""
    if (
        isinstance(value, bool)
        or not isinstance(value, kind)
        or not (low <= value <= high and math.isfinite(value))
    ):
        upper = "" if math.isinf(high) else f" to {high}"
        noun = "whole number" if kind is Integral else "number"
        raise ValueError(f"{name}={value!r}: a {noun} from {low}{upper} wanted")


def check_choice(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(
            f"{name}={value!r}: {', '.join(map(repr, known[:-1]))} or {known[-1]!r} wanted"
        )


def check_keys(keys: Iterable[str], known: Sequence[str]) -> None:
    """Raises ValueError for a key that is not known, with the nearest one that is."""
    for key in keys:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1)
            hint = f", did you mean {nearest[0]!r}?" if nearest else ""
            raise ValueError(f"unknown setting {key!r}{hint}")
