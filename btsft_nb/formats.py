"""A row of a known layout -> messages.

A layout is a set of field names and a function `fields -> list[Message]`; `LAYOUTS` lists them, and adding one there
is all that a new layout needs. Nothing is guessed from the content of a field: the field names alone decide, in upper
or lower case, or `format` does:

    "question"                                               the name of a layout
    {"problem": "problem.problem", "solution": "solution"}   a layout's fields -> columns, dots lead into dictionaries
    lambda row: {"text": row["body"]}                        a function row -> row of a known layout
"""

import re
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import NamedTuple

from .messages import (
    THINK_TAGS,
    Block,
    Message,
    RowError,
    UnsuitableRow,
    as_text,
    assistant,
    has_tags,
    is_empty,
    read_turn,
    shown,
    tagged,
)

__all__ = [
    "LAYOUTS", "THINK_TAGS", "Block", "Format", "Message", "RowError", "UnsuitableRow", "to_messages", "to_prompt",
]  # fmt: skip

Format = str | dict[str, str] | Callable[[dict], dict] | None


def to_messages(row: dict, format: Format = None) -> list[Message]:
    """The conversation in a row, ending in an assistant turn; or one message of the role text, formatted already.

    Raises:
        RowError: no layout fits or several do, a field is malformed, or there is no assistant text.
        ValueError: `format` names no layout, or is no map to the fields of one.
    """
    messages, answer = _read(row, format)
    _check(messages, answer)
    return messages


def to_prompt(row: dict | str, format: Format = None) -> list[Message]:
    """The conversation without its last turn where that is the assistant's: what a model is given to go on from.

    A string is one user turn; a row is as for `to_messages`, but needs no assistant turn. Raises as that does.
    """
    if isinstance(row, str):
        return [Message("user", [Block(as_text(row, "prompt"))])]
    messages, answer = _read(row, format)
    if any(message.role == "text" for message in messages):
        raise RowError("formatted text has no turns to cut a prompt from; give the prompt as text", field=answer)
    messages = messages[:-1] if messages and messages[-1].role == "assistant" else messages
    if not messages:
        raise RowError("no turn before the assistant's; a prompt needs one", field=answer)
    return messages


def _read(row: dict, format: Format) -> tuple[list[Message], str]:
    """The messages, and the column that the answer stood in."""
    if callable(format):
        row = format(row)
    if not isinstance(row, dict):
        made = "from format=, which makes rows of a known layout" if callable(format) else "a JSON object with fields"
        raise RowError(f"a row is {made}; got {type(row).__name__}: {shown(row)}")
    given = _known_fields(row)
    if "tools" in given and not is_empty(given["tools"][1]):
        raise RowError("tool definitions are not rendered yet; leave such rows out", field=given["tools"][0])
    if isinstance(format, dict):
        given = _mapped(row, format)
    layout = _named(format, given) if isinstance(format, str) else _detected(row, given)
    try:
        messages = layout.read({name: value for name, (_, value) in given.items()})
    except RowError as error:
        name = re.match(r"\w*", error.field)[0]
        column = given[name][0] + error.field.removeprefix(name) if name in given else error.field
        raise type(error)(error.problem, field=column) from None
    return messages, given[layout.fields[-1]][0]


def _known_fields(row: dict) -> dict[str, tuple[str, object]]:
    """Field of a layout -> the column of the row that is called so, in any case, and what it holds; None is absent."""
    given = {}
    for column, value in row.items():
        name = column.lower() if isinstance(column, str) else None
        if value is None or name not in FIELDS:
            continue
        if name in given:
            raise RowError(f"the row has {given[name][0]!r} and {column!r}; keep one of them", field=name)
        given[name] = column, value
    return given


def _mapped(row: dict, columns: dict[str, str]) -> dict[str, tuple[str, object]]:
    """As `_known_fields`, for a map from fields to columns."""
    if any(not isinstance(column, str) for column in columns.values()) or not set(columns) <= FIELDS:
        raise ValueError(f"format={columns}: a map from fields of a layout to columns wanted; layouts: {_listed()}")
    if len(layouts := _fitting(frozenset(columns))) != 1:
        raise ValueError(f"format={columns}: the fields of one layout wanted, got {layouts}; layouts: {_listed()}")
    given = {}
    for name, column in columns.items():
        value = row.get(column)
        if column not in row:
            value = row
            for key in column.split("."):
                value = value.get(key) if isinstance(value, dict) else None
        if value is not None:
            given[name] = column, value
        elif name in LAYOUTS[layouts[0]].fields:
            raise RowError(f"absent, but {name} is to come from there; the row has {shown(list(row))}", field=column)
    return given


def _named(name: str, given: Collection[str]) -> "Layout":
    if name not in LAYOUTS:
        raise ValueError(f"format={name!r}: no such layout; known: {_listed()}")
    absent = [field for field in LAYOUTS[name].fields if field not in given]
    if absent:
        raise RowError(f"absent, but the layout {name} has it", field=absent[0])
    return LAYOUTS[name]


def _detected(row: dict, given: Collection[str]) -> "Layout":
    fitting = _fitting(frozenset(given))
    if len(fitting) == 1:
        return LAYOUTS[fitting[0]]
    problem = f"the fields {shown(list(row))} fit "
    if fitting:
        names = ", ".join(fitting)
        raise RowError(f"{problem}several layouts ({names}); name one of them with format=, as in {fitting[0]!r}")
    raise RowError(f"{problem}no known layout; give format=, or one of the layouts {_listed()}")


@lru_cache  # rows of a set have the same fields
def _fitting(given: frozenset[str]) -> list[str]:
    """The layouts whose fields are there, without those that another of them includes."""
    fit = [name for name, layout in LAYOUTS.items() if all(field in given for field in layout.fields)]
    including = {name: {*LAYOUTS[name].fields, *LAYOUTS[name].others} for name in fit}
    return [a for a in fit if not any(a != b and including[b].issuperset(LAYOUTS[a].fields) for b in fit)]


def _listed() -> str:
    return "; ".join(f"{name}: {', '.join(layout.fields)}" for name, layout in LAYOUTS.items())


def _check(messages: list[Message], answer: str) -> None:
    replies = [message for message in messages if message.role in ("assistant", "text")]
    roles = [message.role for message in messages]
    if not replies:
        raise RowError(f"no assistant turn in the roles {shown(roles)}; training needs one", field=answer)
    if roles[0] == "assistant":
        raise RowError("begins with the assistant, so there is nothing to answer; remove that turn", field=answer)
    if any(not reply.text.strip() for reply in replies):
        raise RowError("an assistant turn without text; remove the row or fill it", field=answer)
    if messages[-1] is not replies[-1]:
        raise RowError(f"the last turn is of the {roles[-1]}, not of the assistant; cut it off", field=answer)
    weighted = next((m for m in messages if m not in replies and any(block.weight for block in m.blocks)), None)
    if weighted:
        problem = f"a weight other than 0 on a turn of the {weighted.role}; only what the assistant says is trained"
        raise RowError(problem, field=answer)


def _turns(fields: dict, name: str) -> list[Message]:
    """The turns in a field, after those of `system`."""
    turns, where = fields[name], name
    if isinstance(turns, list) and len(turns) == 1 and isinstance(turns[0], list):
        turns, where = turns[0], f"{name}[0]"
    if not isinstance(turns, list):
        raise RowError(f"a list of turns wanted, got {type(turns).__name__}: {shown(turns)}", field=name)
    messages = [read_turn(turn, f"{where}[{i}]") for i, turn in enumerate(turns)]
    system = _system(fields)
    if system and any(message.role == "system" for message in messages):
        raise RowError(f"a system prompt here and in {name}; keep one of them", field="system")
    return [*system, *messages]


def _said(fields: dict, name: str, role: str = "user") -> Message:
    """The message of a field that is text."""
    text = as_text(fields[name], name)
    return assistant(text) if role == "assistant" else Message(role, [Block(text)])


def _system(fields: dict) -> list[Message]:
    system = as_text(fields.get("system", ""), "system")
    return [Message("system", [Block(system)])] if system else []


def _instruction(fields: dict) -> list[Message]:
    """The instruction is the system prompt where there is an input, unless there is a system prompt too."""
    instruction, answer = _said(fields, "instruction"), _said(fields, "output", "assistant")
    system, given = _system(fields), as_text(fields.get("input", ""), "input")
    if given and system:
        instruction = Message("user", [Block(f"{instruction.text}\n\n{given}")])
    elif given:
        return [Message("system", instruction.blocks), _said(fields, "input"), answer]
    return [*system, instruction, answer]


def _question(fields: dict) -> list[Message]:
    answer = _said(fields, "answer", "assistant")
    thought, mark, final = answer.text.rpartition("####")
    if mark and not has_tags(answer.text):
        answer = assistant(tagged(thought) + final.strip())
    return [_said(fields, "question"), answer]


def _prompt(fields: dict) -> list[Message]:
    """Text or turns in both; only the completion is trained, unless the prompt has weights of its own."""
    listed = isinstance(fields["prompt"], list)
    prompt = _turns(fields, "prompt") if listed else [*_system(fields), _said(fields, "prompt")]
    for block in (block for message in prompt for block in message.blocks if message.role == "assistant"):
        block.weight = 0.0 if block.weight is None else block.weight
    if isinstance(fields["completion"], list):
        return [*prompt, *_turns({"completion": fields["completion"]}, "completion")]
    return [*prompt, _said(fields, "completion", "assistant")]


def _trajectory(fields: dict) -> list[Message]:
    """The first of the thoughts, and the answer that it led to."""
    thoughts, where = fields["thinking_trajectories"], "thinking_trajectories"
    if isinstance(thoughts, list):
        if not thoughts:
            raise RowError("an empty list, where a thought is wanted", field=where)
        thoughts, where = thoughts[0], f"{where}[0]"
    thought, attempt = as_text(thoughts, where), as_text(fields["attempt"], "attempt").strip()
    if not attempt:
        raise RowError("no text; remove the row or fill it", field="attempt")
    return [_said(fields, "question"), assistant(tagged(thought) + attempt)]


class Layout(NamedTuple):
    """The fields that tell a layout, that of the answer last; fields -> messages; and what else it may have.

    Of two layouts that fit, the one whose `fields` and `others` include all fields of the other wins.
    """

    fields: tuple[str, ...]
    read: Callable[[dict], list[Message]]
    others: tuple[str, ...] = ()


LAYOUTS = {
    "messages": Layout(("messages",), lambda fields: _turns(fields, "messages"), ("system",)),
    "sharegpt": Layout(("conversations",), lambda fields: _turns(fields, "conversations"), ("system",)),
    "instruction": Layout(("instruction", "output"), _instruction, ("input", "system")),
    "question": Layout(("question", "answer"), _question),
    "prompt": Layout(("prompt", "completion"), _prompt, ("system",)),
    "problem": Layout(
        ("problem", "solution"), lambda fields: [_said(fields, "problem"), _said(fields, "solution", "assistant")]
    ),
    "s1k": Layout(("question", "thinking_trajectories", "attempt"), _trajectory, ("answer",)),
    "text": Layout(("text",), lambda fields: [_said(fields, "text", "text")]),
}
FIELDS = {"tools"}.union(*((*layout.fields, *layout.others) for layout in LAYOUTS.values()))
