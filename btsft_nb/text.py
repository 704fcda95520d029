"""Text from outside, made harmless to look at; and bars of other libraries, left out."""

import unicodedata
from contextlib import contextmanager

# Letters and marks that count as printable, but leave no ink.
_WITHOUT_INK = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")
_ARROWS = {"\n": "\u21b5", "\t": "\u21e5"}


def visible(value: object, limit: int | None = None, keep: str = "") -> str:
    r"""A value as one line of text in which every character can be seen and none moves another.

    Line ends and tabs become arrows; other control characters, and what has no ink or turns the direction of text,
    their code point.

    Args:
        limit: characters of the text to keep; a cut is shown by an ellipsis.
        keep: characters to leave as they are, such as line ends.

    >>> visible("a\tb\n\u202ec", limit=6)
    'a⇥b↵⟨U+202E⟩c'
    >>> visible("a long text", limit=6)
    'a long…'
    """
    text = str(value)
    shown = "".join(char if char in keep else _mark(char) for char in text[:limit])
    is_cut = limit is not None and len(text) > limit
    return shown + "\u2026" if is_cut else shown


def _mark(char: str) -> str:
    if char in _ARROWS:
        return _ARROWS[char]
    is_space = unicodedata.category(char) == "Zs"
    if char in _WITHOUT_INK or not (char.isprintable() or is_space):
        return f"\u27e8U+{ord(char):04X}\u27e9"
    return char


@contextmanager
def no_weight_bars():
    """Context manager in which transformers draws no bar for weights that it reads or writes; its other bars stay.

    In a notebook such a bar is a widget, and is saved with it.
    """
    from transformers.utils import logging  # only here, since it takes a second

    def hook(factory, args, kwargs):
        if kwargs.get("desc") in ("Loading weights", "Writing model shards"):
            kwargs["disable"] = True
        return before(factory, args, kwargs) if before else factory(*args, **kwargs)

    before = logging.set_tqdm_hook(hook)
    try:
        yield
    finally:
        logging.set_tqdm_hook(before)
