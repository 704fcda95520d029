"""Numbers and choices checked by name."""

import difflib
import math
from numbers import Integral, Real

# Settings of transformers 4 whose spelling leads nowhere, or astray, and what is set today; None: nothing is.
_TRANSFORMERS_4 = {
    "fp16_backend": None,
    "group_by_length": "train_sampling_strategy='group_by_length'",
    "logging_dir": "the variable TENSORBOARD_LOGGING_DIR",
    "no_cuda": "use_cpu",
    "overwrite_output_dir": None,
    "save_safetensors": None,
    "tokenizer": "processing_class",
    "use_mps_device": None,
}


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
    """Raises ValueError for a key that is not known, with what it is called today, or the nearest one that is.

    >>> check_keys(["no_cuda"], ["use_cpu"])
    Traceback (most recent call last):
    ...
    ValueError: unknown setting 'no_cuda': it is use_cpu today
    """
    for key in keys:
        if key in known:
            continue
        nearest = difflib.get_close_matches(str(key), known, n=1)
        hint = f", did you mean {nearest[0]!r}?" if nearest else ""
        if key in _TRANSFORMERS_4:
            hint = f": it is {_TRANSFORMERS_4[key] or 'nothing to set'} today"
        raise ValueError(f"{source}unknown setting {key!r}{hint}")
