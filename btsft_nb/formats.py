"""A row of a known layout -> messages.

A layout is a set of field names and a function `row -> list[Message]`; `LAYOUTS` lists them, and adding one there is
all that a new layout needs. Nothing is guessed from the content of a field: the field names alone decide.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

THINK_TAGS = ("<think>", "</think>")
_ROLES = {
    "system": "system", "user": "user", "assistant": "assistant", "tool": "tool",
    "human": "user", "gpt": "assistant", "observation": "tool",
}  # fmt: skip
_LARGEST_WEIGHT = 1e6
_THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")


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
    """One turn of a conversation. `role` is system, user, assistant or tool."""

    role: str
    blocks: list[Block] = field(default_factory=list)
    changed: str | None = None

    @property
    def text(self) -> str:
        return "".join(block.text for block in self.blocks)


def to_messages(row: dict, format=None) -> list[Message]:
    """The conversation in a row of any known layout, ending in an assistant turn.

    Raises RowError where no layout fits, several do, a field is malformed or there is no assistant text.
    """
    if not isinstance(row, dict):
        raise RowError(f"a row is a JSON object with fields, got {type(row).__name__}: {str(row)[:60]!r}")
    fitting = [name for name, (fields, _) in LAYOUTS.items() if all(row.get(key) is not None for key in fields)]
    if len(fitting) != 1:
        known = "; ".join(f"{name}: {', '.join(fields)}" for name, (fields, _) in LAYOUTS.items())
        found = f"fit several layouts ({', '.join(fitting)})" if fitting else "fit no known layout"
        raise RowError(f"the fields {sorted(row)} {found}; known layouts and their fields: {known}")
    if row.get("tools"):
        raise RowError("field 'tools': tool definitions are not rendered yet; leave such rows out")
    messages = LAYOUTS[fitting[0]][1](row)
    _check(messages, LAYOUTS[fitting[0]][0][-1])
    return messages


def to_prompt(row: dict | str) -> list[Message]:
    """The conversation without its last turn where that is the assistant's: what a model is given to go on from.

    A string is one user turn; a row is one of any known layout, or messages that need no assistant turn.
    """
    if isinstance(row, str):
        return [Message("user", [Block(_text(row, "prompt"))])]
    if isinstance(row, dict) and row.get("messages") is not None:
        messages = _turns(row, "messages")
    else:
        messages = to_messages(row)
    messages = messages[:-1] if messages and messages[-1].role == "assistant" else messages
    if not messages:
        raise RowError("no turn before the assistant's; a prompt needs one")
    return messages


def with_thought(thought: str, answer: str) -> str:
    """Thought and answer as a reasoning model writes them, tags on lines of their own."""
    return f"{THINK_TAGS[0]}\n{thought.strip()}\n{THINK_TAGS[1]}\n\n{answer.strip()}"


def _check(messages: list[Message], name: str) -> None:
    turns = [message for message in messages if message.role == "assistant"]
    if not turns:
        roles = [message.role for message in messages]
        raise RowError(f"field {name!r}: no assistant turn in the roles {roles}; training needs one")
    if messages[0].role == "assistant":
        raise RowError(f"field {name!r}: begins with the assistant, so there is nothing to answer; remove that turn")
    if any(not turn.text.strip() for turn in turns):
        raise RowError(f"field {name!r}: an assistant turn without text; remove the row or fill it")
    if messages[-1].role != "assistant":
        raise RowError(f"field {name!r}: the last turn is of the {messages[-1].role}, not of the assistant; cut it off")
    weighted = next((m for m in messages if m.role != "assistant" and any(block.weight for block in m.blocks)), None)
    if weighted:
        raise RowError(
            f"field {name!r}: a weight other than 0 on a turn of the {weighted.role}; only what the assistant "
            "says is trained"
        )


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"field {where}: text wanted, got {type(value).__name__}: {str(value)[:60]!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError(f"field {where}: half a surrogate pair, which is no character: {error}") from error
    return value


def _message(turn: object, where: str) -> Message:
    """A turn with role/content or from/value; content as text or as blocks."""
    if not isinstance(turn, dict):
        raise RowError(f"field {where}: a turn with role and content wanted, got {type(turn).__name__}")
    role = turn.get("role") or turn.get("from")
    if not isinstance(role, str) or role not in _ROLES:
        raise RowError(f"field {where}.role: unknown role {role!r}; known: {', '.join(_ROLES)}")
    content = turn["content"] if turn.get("content") is not None else turn.get("value")
    weight = _weight(turn, where)
    if isinstance(content, list):
        blocks = [_block(block, f"{where}.content[{i}]", weight) for i, block in enumerate(content)]
    else:
        blocks = [Block(_text("" if content is None else content, f"{where}.content"), weight)]
    if turn.get("tool_calls"):
        raise RowError(f"field {where}.tool_calls: tool calls are not rendered yet; leave such rows out")
    name = next((key for key in _THOUGHT_FIELDS if turn.get(key)), None)
    thought = _text(turn[name], f"{where}.{name}").strip() if name else ""
    if thought and any(tag in block.text for tag in THINK_TAGS for block in blocks):
        raise RowError(f"field {where}.{name}: a thought here and think tags in the content; keep one of them")
    if thought:
        blocks.insert(0, Block(f"{THINK_TAGS[0]}\n{thought}\n{THINK_TAGS[1]}\n\n", weight))
    return Message(_ROLES[role], blocks)


def _block(block: object, where: str, weight: float | None) -> Block:
    """A piece of content; `weight` is what it weighs where it does not say."""
    if not isinstance(block, dict) or block.get("type") not in (None, "text"):
        raise RowError(f"field {where}: a block {{'type': 'text', 'text': ...}} wanted, got {str(block)[:60]!r}")
    own = _weight(block, where)
    return Block(_text(block.get("text"), f"{where}.text"), weight if own is None else own)


def _weight(item: dict, where: str) -> float | None:
    weight = item.get("weight")
    if weight is None:
        return None
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not abs(weight) <= _LARGEST_WEIGHT:
        raise RowError(f"field {where}.weight: a number within {_LARGEST_WEIGHT:g} of 0 wanted, got {weight!r:.20}")
    return float(weight)


def _turns(row: dict, name: str) -> list[Message]:
    if not isinstance(row[name], list):
        raise RowError(f"field {name!r}: a list of turns wanted, got {type(row[name]).__name__}")
    turns = [_message(turn, f"{name}[{i}]") for i, turn in enumerate(row[name])]
    system = _text(row.get("system") or "", "system")
    if system and any(turn.role == "system" for turn in turns):
        raise RowError(f"field 'system': a system prompt here and in {name!r}; keep one of them")
    return [Message("system", [Block(system)]), *turns] if system else turns


def _instruction(row: dict) -> list[Message]:
    instruction, given = _text(row["instruction"], "instruction"), _text(row.get("input") or "", "input")
    turns = [("system", instruction), ("user", given)] if given else [("user", instruction)]
    return [Message(role, [Block(text)]) for role, text in [*turns, ("assistant", _text(row["output"], "output"))]]


def _question(row: dict) -> list[Message]:
    question, answer = _text(row["question"], "question"), _text(row["answer"], "answer")
    thought, mark, final = answer.rpartition("####")
    answer = with_thought(thought, final) if mark else answer
    return [Message("user", [Block(question)]), Message("assistant", [Block(answer)])]


# name -> (the fields that tell it, the one that holds the answer last; row -> messages)
LAYOUTS: dict[str, tuple[tuple[str, ...], Callable[[dict], list[Message]]]] = {
    "messages": (("messages",), lambda row: _turns(row, "messages")),
    "sharegpt": (("conversations",), lambda row: _turns(row, "conversations")),
    "instruction": (("instruction", "output"), _instruction),
    "question": (("question", "answer"), _question),
}
