"""What a row becomes: messages made of blocks, or an error that says what is wrong with it; and how a turn is read."""

import re
import reprlib
from dataclasses import dataclass, field, replace
from numbers import Real

THINK_TAGS = ("<think>", "</think>")
_ROLES = {
    "system": "system", "user": "user", "assistant": "assistant", "tool": "tool",
    "human": "user", "gpt": "assistant", "observation": "tool", "function": "tool",
}  # fmt: skip
_LARGEST_WEIGHT = 1e6
A_WEIGHT = f"a number within {_LARGEST_WEIGHT:g} of 0"
_THOUGHTS = (
    "reasoning_content",
    "reasoning",
    "thinking",
)  # names of fields, and types of parts, that hold a thought
_MARKERS = {  # how other families of models write the think tags
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<reasoning>": "</reasoning>",
    "[THINK]": "[/THINK]",
    "<thinking>": "</thinking>",
}
_SOLUTION = re.compile(r"<\|begin_of_solution\|>\s*|((?<!\s)\s+)?<\|end_of_solution\|>(\s*\Z)?")
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxlist, _SHORT.maxstring, _SHORT.maxother = 2, 12, 60, 60


class RowError(ValueError):
    """A row that cannot be used as it is: says which field, what was given and what would do.

    `source` and `row` (counted from 0) are where it stands, as far as that is known; `field` names the field.
    """

    def __init__(self, problem: str, *, field: str = "", source: str = "", row: int | None = None):
        super().__init__(problem)
        self.problem, self.field, self.source, self.row = problem, field, source, row

    def at(self, source: str, row: int) -> "RowError":
        """The same error, which knows where the row stands."""
        return type(self)(self.problem, field=self.field, source=source, row=row)

    def __str__(self) -> str:
        where = ", ".join(
            [self.source] * bool(self.source) + [f"row {self.row}"] * (self.row is not None)
        )
        return ": ".join(
            [where] * bool(where) + [f"field {self.field}"] * bool(self.field) + [self.problem]
        )


class UnsuitableRow(RowError):
    """A well-formed row that the tokenizer's template has no place for: `prepare` drops and counts it."""


@dataclass
class Block:
    """A piece of a message: its text, what one token of it weighs (None: the default, 1 in assistant turns), and a
    name under which its tokens can be followed (`Example.tags`)."""

    text: str
    weight: float | None = None
    tag: str | None = None


@dataclass
class Message:
    """One turn of a conversation. `role` is system, user, assistant or tool; or text, which is formatted already and
    stands alone. `changed` says which thought markers were replaced by the think tags, if any were."""

    role: str
    blocks: list[Block] = field(default_factory=list)
    changed: str | None = None

    @property
    def text(self) -> str:
        return "".join(block.text for block in self.blocks)


def shown(value: object) -> str:
    """The first few characters of a value, however large or deep it is."""
    try:
        return _SHORT.repr(value)
    except ValueError:  # Python writes out no whole number of more than 4,300 digits
        return f"{type(value).__name__} with more than 4,300 digits"


def refuse_tools(where: str, value: object) -> None:
    """RowError for a list of tools or of tool calls that has any; some data sets hold it as JSON text."""
    if value is not None and not (isinstance(value, (str, list)) and value in ("", "[]", [])):
        raise RowError(
            "tools and their calls are not rendered yet; leave such rows out", field=where
        )


def as_text(value: object, where: str) -> str:
    """The value, where it is text that can be encoded; else RowError."""
    if not isinstance(value, str):
        raise RowError(f"text wanted, got {type(value).__name__}: {shown(value)}", field=where)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(
            f"half a surrogate pair, which is no character: {error}", field=where
        ) from None
    return value


def is_weight(value: object) -> bool:
    """Whether a value can be the weight of a token; NaN and infinity cannot."""
    return (
        isinstance(value, Real)
        and not isinstance(value, bool)
        and bool(abs(value) <= _LARGEST_WEIGHT)
    )


def tagged(thought: str) -> str:
    """A thought as a reasoning model writes it, tags on lines of their own, up to where the answer begins."""
    return f"{THINK_TAGS[0]}\n{thought.strip()}\n{THINK_TAGS[1]}\n\n"


def has_tags(text: str) -> bool:
    """Whether a think tag stands in the text."""
    return any(tag in text for tag in THINK_TAGS)


def message(role: str, blocks: list[Block]) -> Message:
    """A turn; where an assistant's text begins with another family's thought marker, with think tags instead."""
    text = "".join(block.text for block in blocks)
    start = len(text) - len(text.lstrip())
    opening = next((marker for marker in _MARKERS if text.startswith(marker, start)), None)
    if role != "assistant" or opening is None or has_tags(text):
        return Message(role, blocks)
    edits, stop = (
        [(start, start + len(opening), THINK_TAGS[0])],
        text.find(_MARKERS[opening], start),
    )
    if stop >= 0:
        end = stop + len(_MARKERS[opening])
        edits += [
            (stop, end, THINK_TAGS[1]),
            *((*found.span(), "") for found in _SOLUTION.finditer(text, end)),
        ]
    for edit in reversed(edits):
        blocks = _edited(blocks, *edit)
    return Message(role, blocks, f"{opening} -> {THINK_TAGS[0]}")


def _edited(blocks: list[Block], start: int, stop: int, new: str) -> list[Block]:
    """Blocks in whose text [start:stop] became `new`, which belongs to the block that `start` is in."""
    edited, at = [], 0
    for block in blocks:
        first, last = max(start - at, 0), max(stop - at, 0)
        inserted = new if 0 <= start - at < len(block.text) else ""
        edited.append(replace(block, text=block.text[:first] + inserted + block.text[last:]))
        at += len(block.text)
    return edited


def read_turn(turn: object, where: str) -> Message:
    """A turn with role/content or from/value, its content text or a list of parts, its thought anywhere.

    Raises RowError with the field, which begins with `where`.
    """
    if not isinstance(turn, dict):
        raise RowError(
            f"a turn with role and content wanted, got {type(turn).__name__}: {shown(turn)}",
            field=where,
        )
    key = _first(turn, "role", "from")
    role = turn.get(key)
    if not isinstance(role, str) or role not in _ROLES:
        raise RowError(
            f"unknown role {shown(role)}; known: {', '.join(_ROLES)}", field=f"{where}.{key}"
        )
    refuse_tools(f"{where}.tool_calls", turn.get("tool_calls"))
    role, weight, key = _ROLES[role], _weight(turn, where), _first(turn, "content", "value")
    content, place = turn.get(key), f"{where}.{key}"
    if isinstance(content, list):
        parts = [_part(part, f"{place}[{i}]", weight) for i, part in enumerate(content)]
    else:
        parts = [(Block(as_text("" if content is None else content, place), weight), None)]
    told = {
        as_text(turn[key], f"{where}.{key}").strip(): key
        for key in _THOUGHTS
        if turn.get(key) is not None
    }
    parts[:0] = [
        (Block(tagged(thought), weight), f"{where}.{key}")
        for thought, key in told.items()
        if thought
    ]
    blocks, thoughts = [block for block, _ in parts], [place for _, place in parts if place]
    if role != "assistant" and (thoughts or any(block.weight for block in blocks)):
        problem = f"a thought, or a weight other than 0, of the {role}; only the assistant thinks and is trained"
        raise RowError(problem, field=[*thoughts, where][0])
    if thoughts and (
        thoughts[1:] or has_tags(message(role, [block for block, place in parts if not place]).text)
    ):
        problem = f"a thought here, and another in {', '.join(thoughts[1:]) or 'think tags'}; keep one of them"
        raise RowError(problem, field=thoughts[0])
    return message(role, blocks)


def _first(item: dict, *names: str) -> str:
    """The first of the names under which the item holds anything; by default the first of all."""
    return next((name for name in names if item.get(name) is not None), names[0])


def _part(part: object, where: str, weight: float | None) -> tuple[Block, str | None]:
    """A part of the content, and `where` if it is a thought; `weight` is what it weighs where it does not say."""
    if not isinstance(part, dict):
        raise RowError(
            f"a part {{'type': 'text', 'text': ...}} wanted, got {shown(part)}", field=where
        )
    kind = part.get("type")
    if kind not in (None, "text", *_THOUGHTS):
        raise RowError(
            f"a part of type {shown(kind)}; known: 'text', {str(_THOUGHTS)[1:-1]}", field=where
        )
    key = _first(part, "text", "value", *["thinking"] * (kind in _THOUGHTS))
    text, own, tag = as_text(part.get(key), f"{where}.{key}"), _weight(part, where), part.get("tag")
    tag = None if tag is None else as_text(tag, f"{where}.tag")
    if kind in _THOUGHTS:
        text = tagged(text) if text.strip() else ""
    return Block(
        text, weight if own is None else own, tag
    ), where if kind in _THOUGHTS and text else None


def _weight(item: dict, where: str) -> float | None:
    weight = item.get("weight")
    if weight is None:
        return None
    if not is_weight(weight):
        raise RowError(f"{A_WEIGHT} wanted, got {shown(weight)}", field=f"{where}.weight")
    return float(weight)
