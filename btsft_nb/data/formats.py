"""A row of a known layout -> messages.

A layout is the names of its fields and a function that reads them. `LAYOUTS` lists all; a new one is a new entry there.
Nothing is guessed from what a field holds. The names of the columns alone tell the layout, in upper or lower case; or
`format` does:

    "question"                                               the name of a layout
    {"problem": "problem.problem", "solution": "solution"}   a layout's fields -> columns; dots lead into dictionaries
    lambda row: {"text": row["body"]}                        a function row -> row of a known layout
"""

import math
from collections.abc import Callable
from decimal import Decimal
from functools import lru_cache
from numbers import Real
from typing import NamedTuple

from ..text import visible
from .errors import RowError, unexpected
from .messages import Block, Message, as_text, read_turn, refuse_tools, to_message
from .think import has_tags, tagged

TRAINED = ("assistant", "text")  # roles of what is trained
Format = str | dict[str, str] | Callable[[dict], dict] | None


class Column(NamedTuple):
    """What a row holds for a field of its layout, and the column's own name, for errors."""

    name: str
    value: object

    @property
    def text(self) -> str:
        """The value, which has to be text."""
        return as_text(self.value, self.name)


class Layout(NamedTuple):
    """A kind of row.

    Attributes:
        fields: the names that it is known by, that of the answer last.
        read: the columns of `fields`, then of `optional` (None where absent) -> messages.
        optional: further fields.
        overrides: another layout, which the fields of this one would fit as well.
    """

    fields: tuple[str, ...]
    read: Callable[..., list[Message]]
    optional: tuple[str, ...] = ()
    overrides: str = ""


def to_messages(row: dict, format: Format = None) -> list[Message]:
    """The conversation in a row, which ends in an assistant turn; or one message of the role text.

    Raises:
        RowError: no layout fits or several do, a field is malformed, or there is no assistant text.
        ValueError: `format` names no layout, or is no map to the fields of one.

    >>> for message in bt.to_messages({"question": "3 + 4?", "answer": "3 + 4 = 7 #### 7"}):
    ...     print(message.role, repr(message.text))
    user '3 + 4?'
    assistant '<think>\\n3 + 4 = 7\\n</think>\\n\\n7'
    """
    messages, column = _read(row, format)
    # Only what ends in a completion can be trained.
    if not messages or messages[-1].role not in TRAINED:
        raise RowError("no assistant turn at the end; cut the rest off", field=column)
    if messages[0].role == "assistant":
        raise RowError("the assistant speaks first; remove that turn", field=column)
    for turn in messages:
        if turn.role in TRAINED and not turn.text.strip():
            raise RowError("an assistant turn without text; remove the row", field=column)
    return messages


def to_prompt(row: dict | str, format: Format = None) -> list[Message]:
    """The conversation that a model goes on from: without the last turn where that is the assistant's.

    Args:
        row: text, which is one user turn, or a row as for `to_messages`, the assistant's turn optional.

    Raises as `to_messages` does.

    >>> [message.text for message in bt.to_prompt({"question": "3 + 4?", "answer": "7"})]
    ['3 + 4?']
    """
    # A question alone
    if isinstance(row, str):
        return [Message("user", [Block(as_text(row, "prompt"))])]
    messages, column = _read(row, format)
    if messages and messages[-1].role in TRAINED:
        messages.pop()
    if not messages:
        raise RowError("no turn to answer; a prompt is text, or a row with a turn", field=column)
    return messages


def reference_of(row: dict | str) -> str | None:
    """The right answer that a row holds in its column `answer`, in any case; None where it has none.

    Raises RowError where it is neither text nor a number, or two columns hold one.

    >>> reference_of({"question": "3 + 4?", "Answer": 7})
    '7'
    """
    column = _known_columns(row).get("answer") if isinstance(row, dict) else None
    if column is None:
        return None
    is_number = isinstance(column.value, (Real, Decimal)) and not isinstance(column.value, bool)
    # NaN is what a table holds where an answer is missing.
    return str(column.value) if is_number and math.isfinite(column.value) else column.text


def _read(row: dict, format: Format) -> tuple[list[Message], str]:
    """The messages, and the name of the column with the answer."""
    if callable(format):
        row = format(row)
    if not isinstance(row, dict):
        raise unexpected(row, "a row that is a dictionary")
    # Which column holds what
    columns = _known_columns(row)
    # A row whose tools are left out would teach calls of unknown ones.
    if "tools" in columns:
        refuse_tools(columns["tools"].value, columns["tools"].name)
    if isinstance(format, dict):
        columns = _mapped_columns(row, format)
    name = format if isinstance(format, str) else _layout_name(row, columns)
    if name not in LAYOUTS:
        raise ValueError(f"format={name!r} is no layout; known: {_LISTED}")

    # All that the layout needs has to be there.
    layout = LAYOUTS[name]
    for field in layout.fields:
        column = columns.get(field, Column(field, None))
        if column.value is None:
            raise RowError(f"missing, and the layout {name} needs it", field=column.name)
    # Any layout may have a system prompt in a column of its own.
    system = columns.get("system")
    messages = layout.read(*(columns.get(field) for field in layout.fields + layout.optional))
    if not _is_empty(system):
        if any(turn.role in ("system", "text") for turn in messages):
            raise RowError("another system prompt in the conversation; keep one", field=system.name)
        messages.insert(0, _turn(system, "system"))
    return messages, columns[layout.fields[-1]].name


def _is_empty(column: Column | None) -> bool:
    return column is None or column.value in (None, "")


def _known_columns(row: dict) -> dict[str, Column]:
    """Field -> the column that has its name, in any case, and holds anything."""
    columns = {}
    for name, value in row.items():
        field = name.lower() if isinstance(name, str) else None
        # An empty column is as good as none: tables of several layouts have many.
        if value is None or field not in FIELDS:
            continue
        if field in columns:
            names = f"{columns[field].name!r} and {name!r}"
            raise RowError(f"the row has {names}; keep one of them", field=field)
        columns[field] = Column(name, value)
    return columns


def _mapped_columns(row: dict, names: dict[str, str]) -> dict[str, Column]:
    """Field -> the column that a map leads to, which may hold None."""
    # A misspelt field would be left out in silence.
    texts = [name for name in names.values() if isinstance(name, str)]
    if (
        not FIELDS.issuperset(names)
        or len(_fitting(frozenset(names))) != 1
        or len(texts) < len(names)
    ):
        raise ValueError(f"format={names} maps no layout to columns; known: {_LISTED}")
    columns = {}
    for field, name in names.items():
        value = row
        # A column may have a dot in its own name.
        for key in [name] if name in row else name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        columns[field] = Column(name, value)
    return columns


def _layout_name(row: dict, columns: dict[str, Column]) -> str:
    # Nothing is guessed: a table with the columns of two layouts needs `format`.
    fitting = _fitting(frozenset(columns))
    if len(fitting) != 1:
        fit = ", ".join(fitting) or "no layout"
        names = visible(list(row), limit=300)
        raise RowError(f"the columns {names} fit {fit}; set format= to one of {_LISTED}")
    return fitting[0]


@lru_cache  # the rows of a set have the same fields
def _fitting(fields: frozenset[str]) -> list[str]:
    # A layout whose fields include those of another one wins.
    fitting = [name for name, layout in LAYOUTS.items() if fields.issuperset(layout.fields)]
    overridden = {LAYOUTS[name].overrides for name in fitting}
    return [name for name in fitting if name not in overridden]


# ---- How columns become messages


def _turn(column: Column, role: str = "user") -> Message:
    return to_message(role, [Block(column.text)])


def _turns(column: Column, role: str = "") -> list[Message]:
    """A list of turns, which some data sets put into a list of its own; with a role, also text."""
    if role and isinstance(column.value, str):
        return [_turn(column, role)]
    # Errors say which turn it is, as in messages[0][3].
    turns = column.value
    field = column.name
    if isinstance(turns, list) and len(turns) == 1 and isinstance(turns[0], list):
        turns = turns[0]
        field = f"{field}[0]"
    if not isinstance(turns, list):
        raise unexpected(turns, "a list of turns", field)
    return [read_turn(turn, f"{field}[{i}]") for i, turn in enumerate(turns)]


def _instruction(
    instruction: Column, output: Column, input: Column | None, system: Column | None
) -> list[Message]:
    """Where there is an input, the instruction is the system prompt, unless there is another."""
    # Tables of instructions fill the input with nothing where there is none.
    answer = _turn(output, "assistant")
    if _is_empty(input):
        return [_turn(instruction), answer]
    if _is_empty(system):
        return [_turn(instruction, "system"), _turn(input), answer]
    return [Message("user", [Block(f"{instruction.text}\n\n{input.text}")]), answer]


def _question(question: Column, answer: Column) -> list[Message]:
    """What stands before the last #### of an answer is its thought, as in GSM8K."""
    reply = _turn(answer, "assistant")
    # With think tags the thought is told already.
    thought, mark, final = reply.text.rpartition("####")
    if mark and not has_tags(reply.text):
        reply = Message("assistant", [Block(tagged(thought) + final.strip())])
    return [_turn(question), reply]


def _prompt(prompt: Column, completion: Column) -> list[Message]:
    """Text or turns in both. Of the assistant only the completion is trained, unless turns have weights."""
    # The assistant's turns in a prompt are context.
    turns = _turns(prompt, "user")
    for turn in turns:
        for block in turn.blocks:
            if turn.role == "assistant" and block.weight is None:
                block.weight = 0.0
    return turns + _turns(completion, "assistant")


def _trajectory(question: Column, thoughts: Column, attempt: Column) -> list[Message]:
    """The first of several thoughts, and the attempt that it led to."""
    thought = thoughts
    if isinstance(thoughts.value, list):
        thought = Column(f"{thoughts.name}[0]", next(iter(thoughts.value), None))
    # An empty attempt leaves a turn without text, which is refused.
    answer = attempt.text.strip()
    text = tagged(thought.text) + answer if answer else ""
    return [_turn(question), Message("assistant", [Block(text)])]


# Of two layouts that fit a row, neither is taken, unless one overrides the other.
LAYOUTS = {
    # Chats
    "messages": Layout(("messages",), _turns),
    "sharegpt": Layout(("conversations",), _turns),
    # Single turns, in columns of text
    "instruction": Layout(("instruction", "output"), _instruction, ("input", "system")),
    "question": Layout(("question", "answer"), _question),
    "prompt": Layout(("prompt", "completion"), _prompt),
    "problem": Layout(
        ("problem", "solution"),
        lambda problem, solution: [_turn(problem), _turn(solution, "assistant")],
    ),
    "s1k": Layout(
        ("question", "thinking_trajectories", "attempt"), _trajectory, overrides="question"
    ),
    # Formatted already
    "text": Layout(("text",), lambda text: [_turn(text, "text")]),
}
FIELDS = {"tools", "system"}.union(
    *(layout.fields + layout.optional for layout in LAYOUTS.values())
)
_LISTED = "; ".join(f"{name}: {', '.join(layout.fields)}" for name, layout in LAYOUTS.items())
