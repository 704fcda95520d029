"""What a row becomes: messages made of blocks. And how one turn of a conversation is read."""

from dataclasses import dataclass, replace
from itertools import islice
from numbers import Real

from .errors import RowError, unexpected
from .think import has_tags, retagged, tagged

# The roles, and ShareGPT's names for them
ROLES = {role: role for role in ("system", "user", "assistant", "tool")}
ROLES |= {"human": "user", "gpt": "assistant", "observation": "tool", "function": "tool"}
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
    blocks: list[Block]
    changed: str | None = None

    @property
    def text(self) -> str:
        """The text of all blocks."""
        return "".join(block.text for block in self.blocks)


def as_text(value, field) -> str:
    """The value if it is text that can be encoded. Raises RowError otherwise."""
    if not isinstance(value, str):
        raise unexpected(value, "text", field)
    # Half of a surrogate pair can stand in JSON, but in no file and no tokenizer.
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"half a surrogate pair: {error}", field) from None
    return value


def as_weight(value, field) -> float:
    """The weight of a token. Raises RowError for what cannot be one."""
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    # NaN fails every comparison.
    if not is_number or not -1e6 <= value <= 1e6:
        raise unexpected(value, "a weight between -1e6 and 1e6", field)
    return float(value)


def refuse_tools(value, field) -> None:
    """Raises RowError for tools, or calls of tools. Some data sets write empty ones, as JSON text."""
    if value not in (None, "", "[]", []):
        raise RowError("tools are not supported; leave such rows out", field)


def to_message(role, blocks) -> Message:
    """A turn; in an assistant's, another family's thought markers become the think tags."""
    message = Message(role, blocks)
    # A marker may go across blocks, so it is looked for in the whole text.
    new = retagged(message.text) if role == "assistant" else None
    if new:
        pieces, message.changed = new
        message.blocks = with_pieces(blocks, pieces)
    return message


def with_pieces(blocks, pieces) -> list[Block]:
    """The blocks with a piece of text in place of each character, and nothing where there are no more."""
    pieces = iter(pieces)
    return [replace(block, text="".join(islice(pieces, len(block.text)))) for block in blocks]


def read_turn(turn, field) -> Message:
    """A turn with `role` and `content`, or `from` and `value`, its thought in any of the usual places.

    Args:
        turn: its content is text, or a list of parts.
        field: the name of the turn in errors.

    Raises RowError, with the field inside the turn.
    """
    # Who speaks. Tools would have to be rendered with their calls.
    if not isinstance(turn, dict):
        raise unexpected(turn, "a turn with role and content", field)
    key, role = _first(turn, "role", "from")
    if role not in list(ROLES):
        raise unexpected(role, f"one of the roles {', '.join(ROLES)}", f"{field}.{key}")
    role = ROLES[role]
    refuse_tools(turn.get("tool_calls"), f"{field}.tool_calls")

    # What is said, and which of it is a thought
    parts = _parts(turn, field)
    weight = _weight(turn, field)
    blocks = {place: _block(part, place, weight) for place, part in parts.items()}
    thoughts = [
        place
        for place, block in blocks.items()
        if parts[place].get("type") in THOUGHT_NAMES and block.text
    ]
    answer = [block for place, block in blocks.items() if place not in thoughts]

    # Only the assistant is trained.
    if role != "assistant" and (thoughts or any(block.weight for block in blocks.values())):
        raise RowError("only the assistant may have a thought or a weight", field)
    # Of two thoughts, nobody can tell which one to train.
    if len(thoughts) > 1 or (thoughts and has_tags(to_message(role, answer).text)):
        raise RowError("a second thought in the turn; keep one", thoughts[0])
    return to_message(role, list(blocks.values()))


def _parts(turn, field):
    """Field -> the part that it holds: thoughts in fields of their own, then the content."""
    parts = {}
    for name in THOUGHT_NAMES:
        thought = {"type": "thinking", "text": turn.get(name)}
        # Some servers write one thought under two names.
        if turn.get(name) is not None and thought not in parts.values():
            parts[f"{field}.{name}"] = thought
    key, content = _first(turn, "content", "value")
    if not isinstance(content, list):
        return parts | {f"{field}.{key}": {"text": "" if content is None else content}}
    return parts | {f"{field}.{key}[{i}]": part for i, part in enumerate(content)}


def _block(part, field, turn_weight):
    """A part of a turn as a block, which weighs what the turn does unless it says otherwise."""
    if not isinstance(part, dict):
        raise unexpected(part, "{'type': 'text', 'text': ...}", field)
    # Some data sets leave the type out.
    kind = part.get("type")
    if kind not in (None, "text", *THOUGHT_NAMES):
        raise unexpected(kind, f"one of the types text, {', '.join(THOUGHT_NAMES)}", field)
    _, text = _first(part, "text", "value", "thinking")
    as_text(text, field)
    # A part that holds a thought brings its tags along.
    if kind in THOUGHT_NAMES:
        text = tagged(text) if text.strip() else ""
    tag = part.get("tag")
    if tag is not None:
        as_text(tag, f"{field}.tag")
    return Block(text, _weight(part, field, turn_weight), tag)


def _first(item, *keys):
    """The first of the keys that the item has a value for, or else the first of all; and its value."""
    key = next((key for key in keys if item.get(key) is not None), keys[0])
    return key, item.get(key)


def _weight(item, field, default=None):
    """The weight that a turn or part has; where it has none, the default."""
    weight = item.get("weight")
    return default if weight is None else as_weight(weight, f"{field}.weight")
