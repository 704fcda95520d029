"""Mathematics as math-verify reads and compares it, without its tolerances."""

import logging
import re
import signal
import threading
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

# times and ratios, dates, chemical formulas; and what has neither digit nor operator
_TEXT = re.compile(r"\d:\d|\d-\d+-\d|[A-Za-z]\d|^[^\d\\<>=+*/^(]*$")
_COMMAND = re.compile(r"\\[A-Za-z]+")


@dataclass(frozen=True)
class Formula:
    """A text, the SymPy expression that it stands for, and its units, which the expression lacks."""

    text: str
    expression: object = field(compare=False)
    units: list = field(compare=False)


@lru_cache(maxsize=4096)
def read_formula(text):
    r"""The formula that a text is as a whole, a Fraction where it is a rational number; None where it is none.

    >>> read_formula(r"\frac{1}{2}"), read_formula("north pole"), read_formula("9:30")
    (Fraction(1, 2), None, None)
    """
    text = " ".join(re.sub(r"\\?\$|\\(?=%)|\\[()\[\]]", "", text).split()).rstrip(".,; ")
    if not text or _TEXT.search(_COMMAND.sub(r"\\\\", text)):
        return None

    import sympy
    from math_verify import LatexExtractionConfig, parse

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # our callers count what is not read
    latex = f"${text.replace('%', '')}$"
    read = parse(latex, [LatexExtractionConfig()], "no_fallback", parsing_timeout=_time_limit())
    if not read or read[0].has(sympy.nan, sympy.zoo):
        return None
    # a decimal is what it says: math-verify would compare floats to six places
    floats = read[0].atoms(sympy.Float)
    expression = read[0].xreplace({number: sympy.Rational(str(number)) for number in floats})
    words = re.findall(r"[^\W\d_]+|%", _COMMAND.sub("", text.casefold()))
    if expression.free_symbols:
        is_prose = any(len(word) > 3 for word in words)  # read as a product of letters
        return None if is_prose else Formula(text, expression, [])
    if isinstance(expression, sympy.Rational) and not words:
        return Fraction(int(expression.p), int(expression.q))
    return Formula(text, expression, words)


def are_equal(given, wanted):
    """Whether two formulas are equal, units included where both have some; None where that cannot be told in time."""
    from math_verify import verify
    from math_verify.errors import TimeoutException
    from sympy import sympify

    units = [value.units for value in (given, wanted) if getattr(value, "units", None)]
    if len(units) == 2 and units[0] != units[1]:
        return False
    sides = [sympify(getattr(value, "expression", value)) for value in (wanted, given)]
    try:
        return verify(*sides, timeout_seconds=_time_limit(), raise_on_error=True)
    except (Exception, TimeoutException):  # whatever SymPy stumbles over
        return None


def _time_limit():
    """Seconds for one step. math-verify's alarm works in the main thread of a Unix process alone."""
    is_main_thread = threading.current_thread() is threading.main_thread()
    return 5 if is_main_thread and hasattr(signal, "SIGALRM") else None
