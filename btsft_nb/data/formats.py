"""A row of a known layout -> messages.

A layout is a set of field names and a function `fields -> list[Message]`; `LAYOUTS` lists them, and adding one there
is all that a new layout needs. Nothing is guessed from the content of a field: the field names alone decide, in upper
or lower case, or `format` does:

    "question"                                               the name of a layout
    {"problem": "problem.problem", "solution": "solution"}   a layout's fields -> columns, dots lead into dictionaries
    lambda row: {"text": row["body"]}                        a function row -> row of a known layout
"""

import math
import re
from collections.abc import Callable, Collection
from decimal import Decimal
from functools import lru_cache
from numbers import Real
from typing import NamedTuple

from .messages import (
    Block,
    Message,
    RowError,
    as_text,
    has_tags,
    message,
    read_turn,
    refuse_tools,
    shown,
    tagged,
)

Format = str | dict[str, str] | Callable[[dict], dict] | None


def to_messages(row: dict, format: Format = None) -> list[Message]:
    """The conversation in a row, ending in an assistant turn; or one message of the role text, formatted already.

    Raises:
        RowError: no layout fits or several do, a field is malformed, or there is no assistant text.
        ValueError: `format` names no layout, or is no map to the fields of one.
    """
    messages, answer = _read(row, format)
    roles = [turn.role for turn in messages]
    if not roles or roles[-1] not in ("assistant", "text"):
        raise RowError(
            f"no assistant turn at the end of the roles {shown(roles)}; cut the rest off",
            field=answer,
        )
    if roles[0] == "assistant":
        raise RowError(
            "begins with the assistant, so there is nothing to answer; remove that turn",
            field=answer,
        )
    if any(turn.role in ("assistant", "text") and not turn.text.strip() for turn in messages):
        raise RowError("an assistant turn without text; remove the row or fill it", field=answer)
    return messages


def to_prompt(row: dict | str, format: Format = None) -> list[Message]:
    """The conversation without its last turn where that is the assistant's: what a model is given to go on from.

    A string is one user turn; a row is as for `to_messages`, but needs no assistant turn. Raises as that does.
    """
    if isinstance(row, str):
        return [Message("user", [Block(as_text(row, "prompt"))])]
    messages, answer = _read(row, format)
    if messages and messages[-1].role in ("assistant", "text"):
        messages.pop()
    if not messages:
        raise RowError("no turn to answer; a prompt is a row with one, or text", field=answer)
    return messages


def reference_of(row: dict | str) -> str | None:
    """The right answer that a row holds in its column `answer`, in any case; None where it has none.

    Raises RowError where it is neither text nor a number, or two columns hold one.

    >>> reference_of({"question": "3 + 4?", "Answer": 7})
    '7'
    """
    if not isinstance(row, dict):
        return None
    column, value = _known_fields(row).get("answer", ("answer", None))
    is_number = isinstance(value, (Real, Decimal)) and not isinstance(value, bool)
    if is_number and math.isfinite(value):
        return str(value)
    return None if value is None else as_text(value, column)


def _read(row: dict, format: Format) -> tuple[list[Message], str]:
    """The messages, and the column that the answer stood in."""
    if callable(format):
        row = format(row)
    if not isinstance(row, dict):
        raise RowError(
            f"a row is a JSON object, as is what format= makes; got {type(row).__name__}: {shown(row)}"
        )
    given = _known_fields(row)
    refuse_tools(*given.get("tools", ("tools", None)))
    if isinstance(format, dict):
        given = _mapped(row, format)
    name = format if isinstance(format, str) else _detected(row, given)
    if name not in LAYOUTS:
        raise ValueError(f"format={name!r}: no such layout; known: {_LISTED}")
    layout = LAYOUTS[name]
    for field in layout.fields:
        column, value = given.get(field, (field, None))
        if value is None:
            raise RowError(
                f"absent, but the layout {name} has {field}; the row has {shown(list(row))}",
                field=column,
            )
    try:
        messages = _with_system(
            layout, {field: value for field, (_, value) in given.items() if value is not None}
        )
    except RowError as error:
        field = re.match(r"\w+", error.field)[0]
        raise RowError(
            error.problem, field=error.field.replace(field, given[field][0], 1)
        ) from None
    return messages, given[layout.fields[-1]][0]


def _known_fields(row: dict) -> dict[str, tuple[str, object]]:
    """Field of a layout -> the column of the row that is called so, in any case, and what it holds; None is absent."""
    given = {}
    for column, value in row.items():
        name = column.lower() if isinstance(column, str) else None
        if value is not None and name in FIELDS:
            if name in given:
                raise RowError(
                    f"the row has {given[name][0]!r} and {column!r}; keep one of them", field=name
                )
            given[name] = column, value
    return given


def _mapped(row: dict, columns: dict[str, str]) -> dict[str, tuple[str, object]]:
    """As `_known_fields`, for a map from fields to columns; but None stays."""
    known = set(columns) <= FIELDS and all(isinstance(column, str) for column in columns.values())
    if not known or len(_fitting(frozenset(columns))) != 1:
        raise ValueError(
            f"format={columns}: a map from the fields of one layout to columns wanted; known: {_LISTED}"
        )
    given = {}
    for name, column in columns.items():
        value = row
        for key in [column] if column in row else column.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        given[name] = column, value
    return given


def _detected(row: dict, given: Collection[str]) -> str:
    fitting = _fitting(frozenset(given))
    if len(fitting) != 1:
        fit = f"several layouts ({', '.join(fitting)})" if fitting else "no known layout"
        raise RowError(
            f"the fields {shown(list(row))} fit {fit}; say with format= which of these it is: {_LISTED}"
        )
    return fitting[0]


@lru_cache  # rows of a set have the same fields
def _fitting(given: frozenset[str]) -> list[str]:
    """The layouts whose fields are there, without those that another of them includes."""
    fit = [name for name, layout in LAYOUTS.items() if given.issuperset(layout.fields)]
    including = {name: {*LAYOUTS[name].fields, *LAYOUTS[name].others} for name in fit}
    return [
        a
        for a in fit
        if not any(a != b and including[b].issuperset(LAYOUTS[a].fields) for b in fit)
    ]


def _with_system(layout: "Layout", fields: dict) -> list[Message]:
    """The messages of a row, after the one in the field `system`, which any layout may have."""
    system, messages = as_text(fields.get("system", ""), "system"), layout.read(fields)
    if not system:
        return messages
    if any(turn.role in ("system", "text") for turn in messages):
        raise RowError(
            "a system prompt here and in the conversation; keep one of them", field="system"
        )
    return [Message("system", [Block(system)]), *messages]


def _turns(fields: dict, name: str, role: str = "") -> list[Message]:
    """The turns in a field; where a role is given, text is one turn."""
    turns, where = fields[name], name
    if role and isinstance(turns, str):
        return [_said(fields, name, role)]
    if isinstance(turns, list) and len(turns) == 1 and isinstance(turns[0], list):
        turns, where = turns[0], f"{name}[0]"
    if not isinstance(turns, list):
        raise RowError(
            f"a list of turns wanted, got {type(turns).__name__}: {shown(turns)}", field=name
        )
    return [read_turn(turn, f"{where}[{i}]") for i, turn in enumerate(turns)]


def _said(fields: dict, name: str, role: str = "user") -> Message:
    """The message of a field that is text."""
    return message(role, [Block(as_text(fields[name], name))])


def _instruction(fields: dict) -> list[Message]:
    """The instruction is the system prompt where there is an input, unless there is a system prompt too."""
    instruction, answer = _said(fields, "instruction"), _said(fields, "output", "assistant")
    if fields.get("input", "") == "":
        return [instruction, answer]
    given = _said(fields, "input")
    if fields.get("system"):
        return [Message("user", [Block(f"{instruction.text}\n\n{given.text}")]), answer]
    return [Message("system", instruction.blocks), given, answer]


def _question(fields: dict) -> list[Message]:
    answer = _said(fields, "answer", "assistant")
    thought, mark, final = answer.text.rpartition("####")
    if mark and not has_tags(answer.text):
        answer = Message("assistant", [Block(tagged(thought) + final.strip())])
    return [_said(fields, "question"), answer]


def _prompt(fields: dict) -> list[Message]:
    """Text or turns in both; only the completion is trained, unless the prompt has weights of its own."""
    prompt = _turns(fields, "prompt", "user")
    for block in (block for turn in prompt for block in turn.blocks if turn.role == "assistant"):
        block.weight = 0.0 if block.weight is None else block.weight
    return [*prompt, *_turns(fields, "completion", "assistant")]


def _trajectory(fields: dict) -> list[Message]:
    """The first of the thoughts, and the attempt that it led to; without an attempt no text."""
    thought, where = fields["thinking_trajectories"], "thinking_trajectories"
    if isinstance(thought, list):
        thought, where = next(iter(thought), None), f"{where}[0]"
    thought, attempt = as_text(thought, where), as_text(fields["attempt"], "attempt").strip()
    return [
        _said(fields, "question"),
        Message("assistant", [Block(attempt and tagged(thought) + attempt)]),
    ]


class Layout(NamedTuple):
    """The fields that tell a layout, that of the answer last; fields -> messages; and what else it may have.

    Of two layouts that fit, the one whose `fields` and `others` include all fields of the other wins.
    """

    fields: tuple[str, ...]
    read: Callable[[dict], list[Message]]
    others: tuple[str, ...] = ()


LAYOUTS = {
    "messages": Layout(("messages",), lambda row: _turns(row, "messages")),
    "sharegpt": Layout(("conversations",), lambda row: _turns(row, "conversations")),
    "instruction": Layout(("instruction", "output"), _instruction, ("input",)),
    "question": Layout(("question", "answer"), _question),
    "prompt": Layout(("prompt", "completion"), _prompt),
    "problem": Layout(
        ("problem", "solution"),
        lambda row: [_said(row, "problem"), _said(row, "solution", "assistant")],
    ),
    "s1k": Layout(("question", "thinking_trajectories", "attempt"), _trajectory, ("answer",)),
    "text": Layout(("text",), lambda row: [_said(row, "text", "text")]),
}
FIELDS = {"tools", "system"}.union(*(layout.fields + layout.others for layout in LAYOUTS.values()))
_LISTED = "; ".join(f"{name}: {', '.join(layout.fields)}" for name, layout in LAYOUTS.items())
