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
from numbers import Real

from ..text import visible
from .errors import RowError, unexpected
from .messages import Block, Message, as_text, read_turn, refuse_tools, to_message
from .think import has_tags, tagged

TRAINED = ("assistant", "text")  # roles of what is trained
Format = str | dict[str, str] | Callable[[dict], dict] | None


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
        raise RowError("no assistant turn at the end; cut the rest off", column)
    if messages[0].role == "assistant":
        raise RowError("the assistant speaks first; remove that turn", column)
    for turn in messages:
        if turn.role in TRAINED and not turn.text.strip():
            raise RowError("an assistant turn without text; remove the row", column)
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
        return [_turn((row, "prompt"))]
    messages, column = _read(row, format)
    if messages and messages[-1].role in TRAINED:
        messages.pop()
    if not messages:
        raise RowError("no turn to answer; a prompt is text, or a row with a turn", column)
    return messages


def reference_of(row) -> str | None:
    """The right answer that a row holds in its column `answer`, in any case; None where it has none.

    Raises RowError where it is neither text nor a number, or two columns hold one.

    >>> reference_of({"question": "3 + 4?", "Answer": 7})
    '7'
    """
    columns = _known_columns(row) if isinstance(row, dict) else {}
    if "answer" not in columns:
        return None
    value, name = columns["answer"]
    is_number = isinstance(value, (Real, Decimal)) and not isinstance(value, bool)
    # NaN is what a table holds where an answer is missing.
    return str(value) if is_number and math.isfinite(value) else as_text(value, name)


def _read(row, format):
    """The messages, and the name of the column with the answer."""
    if callable(format):
        row = format(row)
    if not isinstance(row, dict):
        raise unexpected(row, "a row that is a dictionary")
    # Which column holds what
    columns = _known_columns(row)
    # A row whose tools are left out would teach calls of unknown ones.
    if "tools" in columns:
        refuse_tools(*columns["tools"])
    if isinstance(format, dict):
        columns = _mapped_columns(row, format)
    # Nothing is guessed: a table with the columns of two layouts needs `format`.
    layouts = [format] if isinstance(format, str) else _fitting(columns)
    if len(layouts) != 1:
        fit = ", ".join(layouts) or "no layout"
        names = visible(list(row), limit=300)
        raise RowError(f"the columns {names} fit {fit}; set format= to one of {_LISTED}")
    if layouts[0] not in LAYOUTS:
        raise ValueError(f"format={format!r} is no layout; known: {_LISTED}")

    # All that the layout needs has to be there.
    fields, read = LAYOUTS[layouts[0]]
    for field in fields:
        value, column = columns.get(field, (None, field))
        if value is None:
            raise RowError(f"missing, and the layout {layouts[0]} needs it", column)
    messages = read(*(columns[field] for field in fields))
    if layouts == ["instruction"] and _has(columns, "input"):
        _add_input(messages, columns)
    # Any layout may have a system prompt in a column of its own.
    if _has(columns, "system"):
        if any(turn.role in ("system", "text") for turn in messages):
            raise RowError("a second system prompt; keep one", columns["system"][1])
        messages.insert(0, _turn(columns["system"], "system"))
    return messages, column


def _has(columns, field):
    # Tables of instructions fill a column with nothing where there is none.
    return field in columns and columns[field][0] not in (None, "")


def _known_columns(row):
    """Field -> what the column of its name holds, in any case, and the column's own name, for errors."""
    columns = {}
    for name, value in row.items():
        field = str(name).lower()
        # An empty column is as good as none: tables of several layouts have many.
        if value is None or field not in FIELDS:
            continue
        if field in columns:
            raise RowError(f"the row has {columns[field][1]!r} and {name!r}; keep one", field)
        columns[field] = (value, name)
    return columns


def _mapped_columns(row, names):
    """Field -> what the column that a map leads to holds, None perhaps, and its name."""
    # A misspelt field would be left out in silence.
    are_texts = all(isinstance(name, str) for name in names.values())
    if not are_texts or not FIELDS.issuperset(names) or len(_fitting(names)) != 1:
        raise ValueError(f"format={names} maps no layout to columns; known: {_LISTED}")
    columns = {}
    for field, name in names.items():
        value = row
        # A column may have a dot in its own name.
        for key in [name] if name in row else name.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        columns[field] = (value, name)
    return columns


def _fitting(columns):
    """The names of the layouts whose fields are all there."""
    fitting = [name for name, (fields, _) in LAYOUTS.items() if columns.keys() >= set(fields)]
    # s1K's rows can have an answer for reference.
    return ["s1k"] if fitting == ["question", "s1k"] else fitting


# ---- How columns become messages


def _turn(column, role="user"):
    """The message that the text of a column is."""
    return to_message(role, [Block(as_text(*column))])


def _turns(column, role=""):
    """A list of turns, which some data sets put into a list of its own; with a role, also text."""
    turns, field = column
    if role and isinstance(turns, str):
        return [_turn(column, role)]
    if not isinstance(turns, list):
        raise unexpected(turns, "a list of turns", field)
    # Errors say which turn it is, as in messages[0][3].
    if len(turns) == 1 and isinstance(turns[0], list):
        turns = turns[0]
        field = f"{field}[0]"
    return [read_turn(turn, f"{field}[{i}]") for i, turn in enumerate(turns)]


def _exchange(question, answer):
    """A question and its answer."""
    return [_turn(question), _turn(answer, "assistant")]


def _add_input(messages, columns):
    """With an input, the instruction is the system prompt; where there is another, both are what the user says."""
    instruction = messages[0]
    value = _turn(columns["input"])
    if _has(columns, "system"):
        instruction.blocks = [Block(f"{instruction.text}\n\n{value.text}")]
    else:
        instruction.role = "system"
        messages.insert(1, value)


def _question(question, answer):
    """What stands before the last #### of an answer is its thought, as in GSM8K."""
    reply = _turn(answer, "assistant")
    # With think tags the thought is told already.
    thought, mark, final = reply.text.rpartition("####")
    if mark and not has_tags(reply.text):
        reply = Message("assistant", [Block(tagged(thought) + final.strip())])
    return [_turn(question), reply]


def _prompt(prompt, completion):
    """Messages of text or turns in both. Of the assistant only the completion is trained, unless turns have weights."""
    # The assistant's turns in a prompt are context.
    turns = _turns(prompt, "user")
    for turn in turns:
        for block in turn.blocks:
            if turn.role == "assistant" and block.weight is None:
                block.weight = 0.0
    return turns + _turns(completion, "assistant")


def _trajectory(question, thoughts, attempt):
    """The first of several thoughts, and the attempt that it led to."""
    thought, name = thoughts
    if isinstance(thought, list):
        thought = thought[0] if thought else None
        name = f"{name}[0]"
    # An empty attempt leaves a turn without text, which is refused.
    answer = as_text(*attempt).strip()
    text = tagged(as_text(thought, name)) + answer if answer else ""
    return [_turn(question), Message("assistant", [Block(text)])]


# Layout -> its fields, that of the answer last, and what makes messages of their columns, each a value and its name.
# Two that fit a row are refused.
LAYOUTS = {
    # Chats
    "messages": (["messages"], _turns),
    "sharegpt": (["conversations"], _turns),
    # Single turns, in columns of text
    "instruction": (["instruction", "output"], _exchange),
    "question": (["question", "answer"], _question),
    "prompt": (["prompt", "completion"], _prompt),
    "problem": (["problem", "solution"], _exchange),
    "s1k": (["question", "thinking_trajectories", "attempt"], _trajectory),
    # Formatted already
    "text": (["text"], lambda text: [_turn(text, "text")]),
}
FIELDS = {"tools", "system", "input"}.union(*(fields for fields, _ in LAYOUTS.values()))
_LISTED = "; ".join(f"{name}: {', '.join(fields)}" for name, (fields, _) in LAYOUTS.items())
