"""Thousands of malformed rows, generated from a seed: each is the project's one error, by file, row and field."""

import datetime
import json
import pickle
import random
import re
from collections import Counter
from decimal import Decimal

import pytest

from btsft_nb import RowError, Rows, load_rows, prepare, to_messages, to_prompt

COUNT = 4_000
NO_TEXT = [
    5,
    -1.5,
    True,
    False,
    [],
    [1],
    {},
    {"a": 1},
    ["a"],
    [[]],
    float("nan"),
    float("inf"),
    10**4000,
]
NO_JSON = [
    b"bytes",
    {1, 2},
    frozenset("a"),
    (1, 2),
    object(),
    1j,
    Decimal("1.5"),
    datetime.date(2026, 1, 1),
    len,
]
SURROGATES = ["\ud800", "a\udfffb", "\udc00" * 9]
NO_WEIGHT = [
    float("nan"),
    float("inf"),
    float("-inf"),
    True,
    False,
    "1",
    "",
    [],
    {},
    1e7,
    -(10**400),
    "nan",
]
NO_ROLE = ["bot", "", "User", "text", "assistant ", "\ud800", 5, ["user"], {"role": "user"}, None]
TEXT_FIELDS = [
    ("question", "answer"),
    ("instruction", "output"),
    ("problem", "solution"),
    ("Question", "Answer"),
]
KINDS = ("image_url", "tool_call", "audio", "", 5, ["text"], {"type": "text"}, "Text")


def nested(depth: int, inside: object) -> object:
    """A value many lists or dictionaries deep."""
    for i in range(depth):
        inside = [inside] if i % 2 else {"a": inside}
    return inside


DEEP = nested(100_000, 1)


class Malformed:
    """Draws malformed rows; each method makes one kind of them from a row that would do."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)
        self.kinds = [name for name in dir(self) if name.startswith("row_")]

    def row(self) -> tuple[str, object]:
        kind = self.random.choice(self.kinds)
        return kind, getattr(self, kind)()

    def no_text(self) -> object:
        """No text, half a character, something deep; and now and then something of megabytes."""
        pick = self.random.random()
        if pick < 0.002:
            return ["x" * 2_000_000]
        if pick < 0.05:
            return nested(self.random.choice([5, 200, 20_000]), 1)
        return self.random.choice(NO_TEXT + NO_JSON + SURROGATES)

    def turns(self) -> list[dict]:
        """A conversation that would do."""
        role, content = self.random.choice([("role", "content"), ("from", "value")])
        turns = [{role: "user", content: "q"}, {role: "assistant", content: "<think>t</think>a"}]
        return turns * self.random.randint(1, 3)

    def talk(self, turns: object) -> dict:
        """A row of these turns."""
        name = self.random.choice(["messages", "conversations", "Messages"])
        nest = isinstance(turns, list) and self.random.random() < 0.2
        return {name: [turns] if nest else turns, "id": self.random.choice([None, 7, "x"])}

    def with_turn(self, **fields) -> dict:
        """A conversation of which one turn has these fields instead."""
        turns = self.turns()
        i = self.random.randrange(len(turns))
        turns[i] = {"role": ["user", "assistant"][i % 2], "content": "a"} | fields
        return self.talk(turns)

    def with_part(self, part: object) -> dict:
        """A conversation of which the last turn has this part."""
        parts = [{"type": "text", "text": "a"}] * self.random.randint(0, 2)
        parts.insert(self.random.randint(0, len(parts)), part)
        return self.talk(
            [
                *self.turns(),
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": parts},
            ]
        )

    def row_that_is_none(self):
        return self.random.choice([None, "text", *NO_TEXT[:6], *NO_JSON, *SURROGATES, DEEP])

    def row_of_no_layout(self):
        names = self.random.sample(
            ["question", "output", "solution", "prompt", "system", "input", "tag", "\ud800"], 2
        )
        keys = self.random.choice([names, [*names, 5], [None], [(1, 2)], []])
        return {key: self.no_text() for key in keys}

    def row_of_several_layouts(self):
        layouts = [{"question": "a", "answer": "b"}, {"messages": self.turns()}, {"text": "a"}]
        layouts += [{"prompt": "a", "completion": "b"}, {"problem": "a", "solution": "b"}]
        first, second = self.random.sample(layouts, 2)
        return {**first, **second}

    def row_of_wrong_text(self):
        question, answer = self.random.choice(TEXT_FIELDS)
        return {question: "a", answer: "b"} | {
            self.random.choice([question, answer]): self.no_text()
        }

    def row_without_an_answer(self):
        question, answer = self.random.choice(TEXT_FIELDS)
        return {question: "a", answer: self.random.choice(["", " ", "\n\t", "\u3000"])}

    def row_of_wrong_plain_text(self):
        return {"text": self.random.choice([self.no_text(), "", "\n"])}

    def row_of_wrong_trajectories(self):
        row = {"question": "q", "thinking_trajectories": ["t"], "attempt": "a"}
        return row | self.random.choice(
            [
                {"thinking_trajectories": []},
                {"thinking_trajectories": [[]]},
                {"thinking_trajectories": 5},
                {"attempt": ""},
            ]
        )

    def row_of_wrong_turns(self):
        return self.talk(
            self.random.choice([self.no_text(), "text", [None], [self.no_text()], [[], []], [[[]]]])
        )

    def row_without_turns_to_train(self):
        user, reply = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
        return self.talk(
            self.random.choice([[], [user], [reply], [user, reply, user], [reply, user, reply]])
        )

    def row_of_a_wrong_role(self):
        return self.with_turn(role=self.random.choice(NO_ROLE))

    def row_of_wrong_content(self):
        return self.with_turn(
            content=self.random.choice([value for value in NO_TEXT + NO_JSON if value != []])
        )

    def row_with_an_empty_turn(self):
        empty = self.random.choice(
            [
                None,
                "",
                " \n",
                [],
                [{"type": "text", "text": ""}],
                [{"type": "thinking", "text": " "}],
            ]
        )
        return self.talk(
            [
                *self.turns(),
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": empty},
            ]
        )

    def row_of_a_wrong_weight(self):
        weight = self.random.choice(NO_WEIGHT)
        return self.random.choice(
            [self.with_turn(weight=weight), self.with_part({"text": "a", "weight": weight})]
        )

    def row_of_a_wrong_part(self):
        part = {"type": self.random.choice(KINDS), "text": "a"}
        return self.with_part(
            self.random.choice([part, "a", None, {"type": "text"}, {"text": self.no_text()}])
        )

    def row_of_a_wrong_tag(self):
        return self.with_part({"type": "text", "text": "a", "tag": self.no_text()})

    def row_of_a_wrong_thought(self):
        return self.with_turn(reasoning_content=self.no_text())

    def row_with_two_thoughts(self):
        content = self.random.choice(["<think>t</think>a", "[THINK]t[/THINK]a", "a</think>"])
        turns = [
            {"role": "user", "content": "q"},
            {"role": "assistant", "reasoning": "t", "content": content},
        ]
        return self.talk(turns)

    def row_with_tools(self):
        return {
            **self.talk(self.turns()),
            "tools": self.random.choice([[{"name": "f"}], "f", {"name": "f"}, 5, b"f", "{}"]),
        }


@pytest.fixture(scope="module")
def malformed() -> list[tuple[str, object]]:
    drawn = Malformed(seed=0)
    return [drawn.row() for _ in range(COUNT)]


def test_the_generator_makes_every_kind_many_times(malformed):
    """Else the tests below would pass on few."""
    counts = Counter(kind for kind, _ in malformed)
    assert (
        set(counts) == set(Malformed(0).kinds) and len(counts) >= 15 and min(counts.values()) > 120
    )


def test_every_malformed_row_is_a_row_error_that_says_where(malformed):
    """With a field, or a statement on the row; short, printable, and nothing else is ever raised."""
    for kind, row in malformed:
        with pytest.raises(RowError) as error:
            to_messages(row)
            pytest.fail(f"{kind} was taken")
        said = str(error.value)
        assert error.value.field or said.startswith(("expected a row", "the columns ")), said
        assert len(said) < 1000 and said.encode(), kind


def test_a_prompt_of_a_malformed_row_is_a_prompt_or_a_row_error(malformed):
    """Some need no assistant turn; no other exception."""
    given = Counter()
    for _, row in malformed:
        try:
            given[bool(to_prompt(row))] += 1
        except RowError:
            given["refused"] += 1
    assert set(given) == {True, "refused"}


def broken(line: bytes, how: random.Random) -> bytes:
    """A line that is no JSON object any more."""
    return how.choice(
        [
            line[: how.randrange(1, max(2, len(line) - 1))],
            line + b"}",
            b"\xff" + line,
            line.decode().encode("utf-16-le"),
            line.replace(b'"', b"'") if b'"' in line else b"'",
            b"[" + line,
            b"[" * 50_000,
            b"[" + line + b"]",
            b'{"a": "caf\xe9"}',
            b'{"a": ' + b"7" * 5000 + b"}",
        ]
    )


@pytest.fixture(scope="module")
def lines(malformed) -> list[tuple[bool, bytes]]:
    """Whether a line holds an object, and the line: malformed rows as far as JSON can write them, half of them cut."""
    how, lines = random.Random(1), []
    for _, row in malformed:
        try:
            line = json.dumps(row).encode()
        except (TypeError, ValueError, RecursionError):
            line = b'{"question": "cannot be written"}'
        cut = not isinstance(row, dict) or len(line) > 10_000 or how.random() < 0.5
        lines.append((False, broken(line[:10_000], how)) if cut else (True, line))
    return lines


def test_every_broken_line_stands_in_its_place(lines, tmp_path):
    """As many entries as lines; a RowError with file and row for each that is no object, and the object for another."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(line for _, line in lines))
    for rows in (load_rows(path, strict=False), list(load_rows(path, strict=False, stream=True))):
        assert len(rows) == len(lines) == COUNT
        for i, ((whole, line), row) in enumerate(zip(lines, rows, strict=True)):
            assert isinstance(row, dict if whole else RowError), (i, line[:80])
            assert whole or (
                (row.source, row.row) == (str(path), i)
                and re.match(rf"{re.escape(str(path))}, row {i}: line {i + 1}[:,] ", str(row))
            )


def test_the_first_broken_line_stops_a_strict_reader(lines, tmp_path):
    """With file and row, each kind of them in turn."""
    path = tmp_path / "rows.jsonl"
    for line in [line for whole, line in lines if not whole][:400]:
        path.write_bytes(b"{}\n\n" + line)
        with pytest.raises(RowError) as error:
            load_rows(path)
        assert (error.value.source, error.value.row) == (str(path), 1)
        assert re.search("row 1: line 3[:,] ", str(error.value))


def test_a_malformed_row_is_one_after_a_file_too(lines, tmp_path):
    """What was written and read again, NaN and half characters among it, is refused as it was."""
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(line for whole, line in lines if whole))
    for row in load_rows(path):
        with pytest.raises(RowError):
            to_messages(row)


def test_a_tolerant_preparation_drops_each_and_counts_it(
    malformed, lines, tiny_tokenizer, tmp_path
):
    """Whatever the other rows are, the good ones are kept, in one process or two, from memory or from a file."""
    good = {"question": "2+2?", "answer": "two and two\n#### 4"}
    rows = [good]
    for _, row in malformed:
        # what pickle cannot write is no row, and pickle says so
        try:
            pickle.dumps(row)
            rows.append(row)
        except RecursionError:
            pass
    assert len(rows) > 0.8 * COUNT
    examples = prepare(Rows([*rows, good], "here"), tiny_tokenizer, strict=False)
    assert list(examples["id"]) == ["here#0", f"here#{len(rows)}"]
    dropped = sorted(row for numbers in examples.report.dropped.values() for row in numbers)
    assert dropped == [*range(1, len(rows))] and examples.report.rows == len(rows) + 1
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([json.dumps(good).encode(), *(line for _, line in lines)]))
    examples = prepare(load_rows(path, strict=False), tiny_tokenizer, strict=False, num_proc=2)
    assert (examples.report.kept, examples.report.n_dropped) == (1, COUNT)
