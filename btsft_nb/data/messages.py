"""What a row becomes: messages made of blocks. And how one turn of a conversation is read."""

from dataclasses import dataclass, field, replace
from numbers import Real

from .errors import RowError, unexpected
from .think import OPEN, Edit, has_tags, marker_edits, tagged

ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    # ShareGPT's names
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "function": "tool",
}
# Fields of a turn, and types of its parts, that hold a thought.
THOUGHT_NAMES = ("reasoning_content", "reasoning", "thinking")


@dataclass
class Block:
    """A piece of a message.

    Attributes:
        text: its characters.
        weight: of each of its tokens; None is the default, 1 in assistant turns.
        tag: a name under which its tokens can be followed (`Example.tags`).
    """

    text: str
    weight: float | None = None
    tag: str | None = None


@dataclass
class Message:
    """One turn of a conversation.

    Attributes:
        role: system, user, assistant or tool; or text, which is formatted already and stands alone.
        blocks: its text, in pieces.
        changed: which thought markers were replaced by the think tags, if any.
    """

    role: str
    blocks: list[Block] = field(default_factory=list)
    changed: str | None = None

    @property
    def text(self) -> str:
        """The text of all blocks."""
        return "".join(block.text for block in self.blocks)


def as_text(value: object, field: str) -> str:
    """The value if it is text that can be encoded. Raises RowError otherwise."""
    if not isinstance(value, str):
        raise unexpected(value, "text", field)
    # Half of a surrogate pair can stand in JSON, but in no file and no tokenizer.
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"half a surrogate pair: {error}", field=field) from None
    return value


def as_weight(value: object, field: str) -> float:
    """The weight of a token. Raises RowError for what cannot be one."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    # NaN fails every comparison.
    if not is_number or not -1e6 <= value <= 1e6:
        raise unexpected(value, "a weight between -1e6 and 1e6", field)
    return float(value)


def refuse_tools(value: object, field: str) -> None:
    """Raises RowError for tools, or calls of tools. Some data sets write empty ones, as JSON text."""
    if value is not None and value not in ("", "[]", []):
        raise RowError("tools are not supported; leave such rows out", field=field)


def to_message(role: str, blocks: list[Block]) -> Message:
    """A turn; in an assistant's, another family's thought markers become the think tags."""
    # A marker may go across blocks, so it is looked for in the whole text.
    text = "".join(block.text for block in blocks)
    edits = marker_edits(text) if role == "assistant" else []
    if not edits:
        return Message(role, blocks)
    # From the end, so that the places of earlier edits stay valid.
    for edit in reversed(edits):
        blocks = _apply(edit, blocks)
    opening = text[edits[0].start : edits[0].stop]
    return Message(role, blocks, changed=f"{opening} -> {OPEN}")


def _apply(edit: Edit, blocks: list[Block]) -> list[Block]:
    """The blocks after an edit, whose new text belongs to the block in which it starts."""
    edited = []
    block_start = 0
    for block in blocks:
        # Where the edit starts and stops, counted from this block's first character.
        start = edit.start - block_start
        stop = edit.stop - block_start
        new = edit.text if 0 <= start < len(block.text) else ""
        text = block.text[: max(start, 0)] + new + block.text[max(stop, 0) :]
        edited.append(replace(block, text=text))
        block_start += len(block.text)
    return edited


def read_turn(turn: object, field: str) -> Message:
    """A turn with `role` and `content`, or `from` and `value`, its thought in any of the usual places.

    Args:
        turn: its content is text, or a list of parts.
        field: the name of the turn in errors.

    Raises RowError, with the field inside the turn.
    """
    # Who speaks. Tools would have to be rendered with their calls.
    if not isinstance(turn, dict):
        raise unexpected(turn, "a turn with role and content", field)
    key = _first_key(turn, "role", "from")
    role = turn.get(key)
    if not isinstance(role, str) or role not in ROLES:
        raise unexpected(role, f"one of the roles {', '.join(ROLES)}", f"{field}.{key}")
    role = ROLES[role]
    refuse_tools(turn.get("tool_calls"), f"{field}.tool_calls")

    # What is said, and which of it is a thought
    blocks = []
    answer = []
    thoughts = []  # the fields that they stand in
    weight = _weight(turn, field)
    for place, part in _parts(turn, field).items():
        block = _block(part, place, weight)
        blocks.append(block)
        if part.get("type") not in THOUGHT_NAMES:
            answer.append(block)
        elif block.text:
            thoughts.append(place)

    # Only the assistant is trained.
    if role != "assistant" and (thoughts or any(block.weight for block in blocks)):
        problem = f"the {role} has a thought or a weight; only the assistant may"
        raise RowError(problem, field=thoughts[0] if thoughts else field)
    # Of two thoughts, nobody can tell which one to train.
    if len(thoughts) > 1 or (thoughts and has_tags(to_message(role, answer).text)):
        others = ", ".join(thoughts[1:]) or "think tags"
        raise RowError(f"a second thought in {others}; keep one", field=thoughts[0])
    return to_message(role, blocks)


def _parts(turn: dict, field: str) -> dict[str, object]:
    """Field -> the part that it holds: thoughts in fields of their own, then the content."""
    parts = {}
    for name in THOUGHT_NAMES:
        thought = {"type": "thinking", "text": turn.get(name)}
        # Some servers write one thought under two names.
        if turn.get(name) is not None and thought not in parts.values():
            parts[f"{field}.{name}"] = thought
    key = _first_key(turn, "content", "value")
    content = turn.get(key)
    if isinstance(content, list):
        return parts | {f"{field}.{key}[{i}]": part for i, part in enumerate(content)}
    return parts | {f"{field}.{key}": {"text": "" if content is None else content}}


def _block(part: object, field: str, turn_weight: float | None) -> Block:
    """A part of a turn as a block, which weighs what the turn does unless it says otherwise."""
    if not isinstance(part, dict):
        raise unexpected(part, "{'type': 'text', 'text': ...}", field)
    # Some data sets leave the type out.
    kind = part.get("type")
    if kind is not None and kind not in ("text", *THOUGHT_NAMES):
        raise unexpected(kind, f"one of the types text, {', '.join(THOUGHT_NAMES)}", field)
    text = as_text(part.get(_first_key(part, "text", "value", "thinking")), field)
    # A part that holds a thought brings its tags along.
    if kind in THOUGHT_NAMES:
        text = tagged(text) if text.strip() else ""
    weight = _weight(part, field)
    tag = part.get("tag")
    if tag is not None:
        as_text(tag, f"{field}.tag")
    return Block(text, turn_weight if weight is None else weight, tag)


def _first_key(item: dict, *keys: str) -> str:
    """The first of the keys that the item has a value for, or else the first of all."""
    return next((key for key in keys if item.get(key) is not None), keys[0])


def _weight(item: dict, field: str) -> float | None:
    weight = item.get("weight")
    return None if weight is None else as_weight(weight, f"{field}.weight")
