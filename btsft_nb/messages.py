"""What a row becomes: messages made of blocks, or an error that says what is wrong with it; and how a turn is read."""

import re
import reprlib
from dataclasses import dataclass, field, replace

THINK_TAGS = ("<think>", "</think>")
_ROLES = {
    "system": "system", "user": "user", "assistant": "assistant", "tool": "tool",
    "human": "user", "gpt": "assistant", "observation": "tool", "function": "tool",
}  # fmt: skip
LARGEST_WEIGHT = 1e6
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # names of fields, and types of parts, that hold a thought
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
        where = ", ".join([self.source] * bool(self.source) + [f"row {self.row}"] * (self.row is not None))
        return ": ".join([where] * bool(where) + [f"field {self.field}"] * bool(self.field) + [self.problem])


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


def is_empty(value: object) -> bool:
    """Whether a list (of tools, of tool calls) is absent or has nothing in it; some data sets hold it as JSON text."""
    return value is None or (isinstance(value, (str, list)) and value in ("", "[]", []))


def as_text(value: object, where: str) -> str:
    """The value, where it is text that can be encoded; else RowError."""
    if not isinstance(value, str):
        raise RowError(f"text wanted, got {type(value).__name__}: {shown(value)}", field=where)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"half a surrogate pair, which is no character: {error}", field=where) from None
    return value


def tagged(thought: str) -> str:
    """A thought as a reasoning model writes it, tags on lines of their own, up to where the answer begins."""
    return f"{THINK_TAGS[0]}\n{thought.strip()}\n{THINK_TAGS[1]}\n\n"


def has_tags(text: str) -> bool:
    """Whether a think tag stands in the text."""
    return any(tag in text for tag in THINK_TAGS)


def assistant(text: str) -> Message:
    """An assistant turn of one block."""
    return Message("assistant", *_with_think_tags([Block(text)]))


def read_turn(turn: object, where: str) -> Message:
    """A turn with role/content or from/value, its content text or a list of parts, its thought anywhere.

    Raises RowError with the field, which begins with `where`.
    """
    if not isinstance(turn, dict):
        raise RowError(f"a turn with role and content wanted, got {type(turn).__name__}: {shown(turn)}", field=where)
    key = _first(turn, "role", "from")
    role = turn.get(key)
    if not isinstance(role, str) or role not in _ROLES:
        raise RowError(f"unknown role {shown(role)}; known: {', '.join(_ROLES)}", field=f"{where}.{key}")
    if not is_empty(turn.get("tool_calls")):
        raise RowError("tool calls are not rendered yet; leave such rows out", field=f"{where}.tool_calls")
    weight, key = _weight(turn, where), _first(turn, "content", "value")
    content, place = turn.get(key), f"{where}.{key}"
    if isinstance(content, list):
        parts = [_part(part, f"{place}[{i}]", weight) for i, part in enumerate(content)]
    else:
        parts = [(Block(as_text("" if content is None else content, place), weight), None)]
    told = {as_text(turn[key], f"{where}.{key}").strip(): key for key in _THOUGHTS if turn.get(key) is not None}
    parts[:0] = [(Block(tagged(thought), weight), f"{where}.{key}") for thought, key in told.items() if thought]
    return _message(_ROLES[role], parts)


def _message(role: str, parts: list[tuple[Block, str | None]]) -> Message:
    """A message from its blocks; beside each that is a thought stands the field that it was in."""
    said, thoughts = [block for block, where in parts if not where], [where for _, where in parts if where]
    changed = None
    if role == "assistant":
        said, changed = _with_think_tags(said)
    if not thoughts:
        return Message(role, said, changed)
    if role != "assistant":
        raise RowError(f"a thought in a turn of the {role}; only the assistant thinks", field=thoughts[0])
    if len(thoughts) > 1:
        raise RowError(f"a thought here and another in {thoughts[1]}; keep one of them", field=thoughts[0])
    if has_tags("".join(block.text for block in said)):
        raise RowError("a thought here and think tags in the content; keep one of them", field=thoughts[0])
    return Message(role, [block for block, _ in parts])


def _first(item: dict, *names: str) -> str:
    """The first of the names under which the item holds anything; by default the first of all."""
    return next((name for name in names if item.get(name) is not None), names[0])


def _part(part: object, where: str, weight: float | None) -> tuple[Block, str | None]:
    """A part of the content, and `where` if it is a thought; `weight` is what it weighs where it does not say."""
    if not isinstance(part, dict):
        raise RowError(f"a part {{'type': 'text', 'text': ...}} wanted, got {shown(part)}", field=where)
    kind = part.get("type")
    if kind == "tool_call":
        raise RowError("a part of type 'tool_call': tool calls are not rendered yet; leave such rows out", field=where)
    if kind not in (None, "text", *_THOUGHTS):
        raise RowError(f"a part of type {shown(kind)}; known: 'text', {str(_THOUGHTS)[1:-1]}", field=where)
    is_thought = kind in _THOUGHTS
    key = _first(part, "text", "value", *["thinking"] * is_thought)
    text, own, tag = as_text(part.get(key), f"{where}.{key}"), _weight(part, where), part.get("tag")
    if is_thought:
        text = tagged(text) if text.strip() else ""
    tag = None if tag is None else as_text(tag, f"{where}.tag")
    return Block(text, weight if own is None else own, tag), where if is_thought and text else None


def _weight(item: dict, where: str) -> float | None:
    weight = item.get("weight")
    if weight is None:
        return None
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not abs(weight) <= LARGEST_WEIGHT:
        wanted = f"a number within {LARGEST_WEIGHT:g} of 0 wanted"
        raise RowError(f"{wanted}, got {shown(weight)}", field=f"{where}.weight")
    return float(weight)


def _with_think_tags(blocks: list[Block]) -> tuple[list[Block], str | None]:
    """Text that begins with another family's thought marker, in think tags; and which marker that was."""
    text = "".join(block.text for block in blocks)
    start = len(text) - len(text.lstrip())
    opening = next((marker for marker in _MARKERS if text.startswith(marker, start)), None)
    if opening is None or has_tags(text):
        return blocks, None
    closing = _MARKERS[opening]
    edits = [(start, start + len(opening), THINK_TAGS[0])]
    stop = text.find(closing, start)
    if stop >= 0:
        edits.append((stop, stop + len(closing), THINK_TAGS[1]))
    if stop >= 0 and opening == "<|begin_of_thought|>":
        edits += [(*found.span(), "") for found in _SOLUTION.finditer(text, stop + len(closing))]
    return _edited(blocks, text, edits), f"{opening} -> {THINK_TAGS[0]}"


def _edited(blocks: list[Block], text: str, edits: list[tuple[int, int, str]]) -> list[Block]:
    """Blocks in which text[start:stop] became something new, which belongs to the block that `start` is in."""
    edited, at = [], 0
    for block in blocks:
        pieces, kept, end = [], at, at + len(block.text)
        for start, stop, new in edits:
            if start < end and stop > at:
                pieces += [text[kept : max(kept, start)], new if start >= at else ""]
                kept = min(stop, end)
        edited.append(replace(block, text="".join(pieces) + text[kept:end]))
        at = end
    return edited
