"""Rows of every known layout become messages, and a row that does not fit is refused in words that help."""

import json
import re
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btsft_nb import RowError, to_messages, to_prompt
from btsft_nb.data.formats import LAYOUTS, reference_of
from btsft_nb.data.messages import Block, Message

USER = {"role": "user", "content": "2+2?"}
REPLY = {"role": "assistant", "content": "<think>2+2=4</think>4"}
TALK = [("user", "2+2?"), ("assistant", "<think>2+2=4</think>4")]


def flat(messages: list[Message]) -> list[tuple[str, str]]:
    return [(message.role, message.text) for message in messages]


def with_blocks(*blocks) -> dict:
    return {"messages": [USER, {"role": "assistant", "content": list(blocks)}]}


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, REPLY]},
        {"messages": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "<think>2+2=4</think>4"}]},
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "<think>2+2=4</think>4"}]},
        {"conversations": [USER, REPLY]},
        {"instruction": "2+2?", "output": "<think>2+2=4</think>4"},
        {"instruction": "2+2?", "input": "", "output": "<think>2+2=4</think>4"},
        {"instruction": "2+2?", "input": None, "output": "<think>2+2=4</think>4"},
        {"question": "2+2?", "answer": "<think>2+2=4</think>4"},
        {"messages": [USER, REPLY], "conversations": None, "question": None, "id": 7, "extra": [1]},
        {"conversations": [[USER, REPLY]]},
        {"Question": "2+2?", "ANSWER": "<think>2+2=4</think>4", "answer": None},
        {"prompt": "2+2?", "completion": "<think>2+2=4</think>4"},
        {"prompt": [USER], "completion": [REPLY]},
        {"prompt": "2+2?", "completion": [REPLY]},
        {"prompt": [USER], "completion": "<think>2+2=4</think>4"},
        {"problem": "2+2?", "solution": "<think>2+2=4</think>4", "answer": "4"},
        {"messages": [USER, REPLY], "tools": []},
        {"messages": [USER, {**REPLY, "tool_calls": []}], "tools": "[]"},
    ],
    ids=["messages", "messages as from/value", "sharegpt", "sharegpt as role/content", "instruction",
         "instruction, empty input", "instruction, no input", "question", "fields that are None or unknown",
         "nested once more", "any case", "prompt", "prompt of turns", "completion of turns",
         "prompt of turns, completion as text", "problem", "no tools", "no tools as JSON"],
)  # fmt: skip
def test_every_layout_gives_the_same_conversation(row):
    """The layout of a row leaves no trace in its messages."""
    assert flat(to_messages(row)) == TALK


def test_instruction_with_input_splits_system_and_user():
    """Where there is an input, the instruction is what holds for it."""
    row = {"instruction": "Add up.", "input": "2+2", "output": "4"}
    assert flat(to_messages(row)) == [("system", "Add up."), ("user", "2+2"), ("assistant", "4")]


@pytest.mark.parametrize(
    ("answer", "thought", "final"),
    [
        ("2+2=4\n#### 4", "2+2=4", "4"),
        ("first\nsecond\n#### 1,000", "first\nsecond", "1,000"),
        ("a #### b #### 3", "a #### b", "3"),
    ],
)
def test_answer_before_the_mark_becomes_the_thought(answer, thought, final):
    """GSM8K: what stands before the last #### is the thought."""
    text = to_messages({"question": "q", "answer": answer})[-1].text
    assert text == f"<think>\n{thought}\n</think>\n\n{final}"


def test_answer_without_mark_stays_as_it_is():
    """No thought is made up."""
    assert to_messages({"question": "q", "answer": " just 4 "})[-1].text == " just 4 "


def test_all_roles_and_turns_are_kept_in_order():
    """A conversation with a system prompt, tools and several assistant turns."""
    turns = [
        ("system", "s"),
        ("human", "u"),
        ("gpt", "a"),
        ("observation", "t"),
        ("function", "f"),
        ("assistant", "b"),
    ]
    row = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    assert flat(to_messages(row)) == [
        ("system", "s"), ("user", "u"), ("assistant", "a"), ("tool", "t"), ("tool", "f"), ("assistant", "b")
    ]  # fmt: skip


@pytest.mark.parametrize("weight", [0, 0.0, 0.25, 1, 3, -1, -0.5, None])
def test_block_weights_are_passed_through(weight):
    """Fractions, zeros and negative weights are data; a block without one has None."""
    given, bare = {"type": "text", "text": "a", "weight": weight}, {"text": "b"}
    assert to_messages(with_blocks(given, bare))[-1].blocks == [
        Block("a", weight),
        Block("b", None),
    ]


def test_zero_weight_on_a_user_block_is_accepted():
    """The openweights layout writes it out."""
    user = {"role": "user", "content": [{"type": "text", "text": "q", "weight": 0}]}
    assert flat(to_messages({"messages": [user, REPLY]}))[0] == ("user", "q")


@pytest.mark.parametrize("content", ["4", [{"type": "text", "text": "4", "weight": 0.5}]])
def test_reasoning_content_stands_before_the_answer_in_tags(content):
    """A thought in a field of its own comes to stand where the model would write it; block weights stay."""
    turn = {"role": "assistant", "reasoning_content": "\n2+2=4\n", "content": content}
    message = to_messages({"messages": [USER, turn]})[-1]
    assert message.text == "<think>\n2+2=4\n</think>\n\n4"
    assert [block.weight for block in message.blocks] == [None, None if content == "4" else 0.5]


@pytest.mark.parametrize("thought", [None, ""])
def test_absent_reasoning_content_adds_no_tags(thought):
    """Data sets fill the field with nothing where there is no thought."""
    turn = {"role": "assistant", "reasoning_content": thought, "content": "4"}
    assert to_messages({"messages": [USER, turn]})[-1].text == "4"


BAD_ROWS = {
    "no dict": (["a", 1], ["['a', 1]", "expected a row that is a dictionary"]),
    "text": ("hello", ["'hello'", "expected a row that is a dictionary"]),
    "unknown layout": (
        {"prompt": "a", "reply": "b"},
        [
            "'prompt', 'reply'",
            "fit no layout",
            *(field for fields, _ in LAYOUTS.values() for field in fields),
        ],
    ),
    "half a layout": ({"question": "a"}, ["['question']", "question, answer"]),
    "several layouts": (
        {"messages": [USER, REPLY], "question": "q", "answer": "a"},
        ["fit messages, question; set format="],
    ),
    "turns no list": ({"messages": "hi"}, ["field messages", "'hi'", "list of turns"]),
    "turn no dict": (
        {"conversations": [USER, "hi"]},
        ["conversations[1]", "'hi'", "role and content"],
    ),
    "no turns": ({"messages": []}, ["field messages", "no assistant turn at the end"]),
    "no assistant": ({"messages": [USER]}, ["field messages", "no assistant turn at the end"]),
    "assistant blank": (
        {"messages": [USER, {"role": "assistant", "content": " \n"}]},
        ["messages", "without text"],
    ),
    "assistant None": (
        {"conversations": [USER, {"role": "assistant"}]},
        ["field conversations", "without text"],
    ),
    "first assistant blank": (
        {"messages": [USER, {**REPLY, "content": ""}, USER, REPLY]},
        ["messages", "without text", "remove the row"],
    ),
    "output blank": ({"instruction": "a", "output": ""}, ["field output", "without text"]),
    "answer blank": ({"question": "a", "answer": "  "}, ["field answer", "without text"]),
    "last of the user": (
        {"messages": [USER, REPLY, USER]},
        ["field messages", "no assistant turn at the end", "cut"],
    ),
    "unknown role": (
        {"messages": [USER, {"role": "bot", "content": "x"}]},
        ["messages[1].role", "'bot'", "assistant", "gpt"],
    ),
    "no role": (
        {"messages": [{"content": "x"}]},
        ["messages[0].role", "None", "one of the roles system, user"],
    ),
    "content a number": (
        {"messages": [USER, {"role": "assistant", "content": 5}]},
        ["field messages[1].content: expected text, got 5"],
    ),
    "block an image": (
        with_blocks({"type": "image_url", "image_url": "u"}),
        ["messages[1].content[0]", "'image_url'", "types text, "],
    ),
    "block a text": (with_blocks({"text": "a"}, "b"), ["messages[1].content[1]", "'b'", "'text'"]),
    "block without text": (
        with_blocks({"type": "text"}),
        ["messages[1].content[0]: expected text, got None"],
    ),
    "thought a list": (
        {"messages": [USER, {**REPLY, "reasoning_content": ["x"]}]},
        ["messages[1].reasoning_content: expected text, got ['x']"],
    ),
    "instruction a list": (
        {"instruction": ["a"], "output": "b"},
        ["field instruction: expected text, got ['a']"],
    ),
    "input a number": (
        {"instruction": "a", "input": 3, "output": "b"},
        ["field input: expected text, got 3"],
    ),
    "question a number": ({"question": 3, "answer": "b"}, ["field question: expected text, got 3"]),
    "answer a number": ({"question": "a", "answer": 4}, ["field answer: expected text, got 4"]),
    "user weight": (
        {"messages": [{"role": "user", "content": [{"text": "q", "weight": 0.5}]}, REPLY]},
        ["field messages[0]", "only the assistant may have a thought or a weight"],
    ),
    "tag a number": (
        with_blocks({"text": "a", "tag": 5}),
        ["messages[1].content[0].tag: expected text, got 5"],
    ),
    "tool call part": (
        with_blocks({"type": "tool_call", "value": "{}"}),
        ["messages[1].content[0]", "'tool_call'", "types text, "],
    ),
    "user thinks": (
        {"messages": [{**USER, "reasoning": "hm"}, REPLY]},
        ["field messages[0]", "only the assistant may have a thought"],
    ),
    "two thoughts": (
        with_blocks(
            {"type": "thinking", "thinking": "a"}, {"text": "b"}, {"type": "reasoning", "text": "c"}
        ),
        ["field messages[1].content[0]: a second thought in the turn; keep one"],
    ),
    "thought and markers": (
        {
            "messages": [
                USER,
                {"role": "assistant", "reasoning": "a", "content": "[THINK]b[/THINK]c"},
            ]
        },
        ["messages[1].reasoning", "keep one"],
    ),
    "several conversations": (
        {"conversations": [[USER, REPLY], [USER, REPLY]]},
        ["conversations[0]: expected a turn with role and content"],
    ),
    "too deep conversations": (
        {"conversations": [[[USER, REPLY]]]},
        ["conversations[0][0]", "role and content"],
    ),
    "error in an inner list": (
        {"conversations": [[USER, {**REPLY, "content": 5}]]},
        ["conversations[0][1].content"],
    ),
    "system twice": (
        {"system": "a", "messages": [{"role": "system", "content": "b"}, USER, REPLY]},
        ["field system", "keep one"],
    ),
    "columns that differ in case": (
        {"question": "a", "Question": "b", "answer": "c"},
        ["'question'", "'Question'"],
    ),
    "field in upper case": ({"Question": "a", "ANSWER": 5}, ["field ANSWER: expected text, got 5"]),
    "no trajectory": (
        {"question": "a", "thinking_trajectories": [], "attempt": "b"},
        ["field thinking_trajectories[0]: expected text, got None"],
    ),
    "trajectory a number": (
        {"question": "a", "thinking_trajectories": [5], "attempt": "b"},
        ["field thinking_trajectories[0]: expected text, got 5"],
    ),
    "attempt blank": (
        {"question": "a", "thinking_trajectories": ["t"], "attempt": " "},
        ["field attempt", "without text; remove the row"],
    ),
    "blank text": ({"text": " "}, ["field text", "without text"]),
    "text and messages": (
        {"text": "a", "messages": [USER, REPLY]},
        ["fit messages, text; set format="],
    ),
}


@pytest.mark.parametrize(("row", "words"), BAD_ROWS.values(), ids=BAD_ROWS)
def test_a_row_that_does_not_fit_says_where_and_what_would_do(row, words):
    """The message names the field, what was given and what is wanted."""
    with pytest.raises(RowError) as error:
        to_messages(row)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("weight", ["1", True, float("nan"), [1], {"a": 1}])
def test_a_weight_that_is_no_number_is_refused(weight):
    """By block, with the weight that was given."""
    with pytest.raises(
        RowError,
        match=r"messages\[1\]\.content\[1\]\.weight: expected a weight between -1e6 and 1e6",
    ) as error:
        to_messages(with_blocks({"text": "a"}, {"text": "b", "weight": weight}))
    assert repr(weight) in str(error.value)


@pytest.mark.parametrize(
    "weight", [float("inf"), float("-inf"), pytest.param(10**400, id="an int beyond float")]
)
def test_an_infinite_weight_is_refused(weight):
    """json.loads reads Infinity; a loss of inf would be all that training reports."""
    with pytest.raises(RowError, match=re.escape("messages[1].content[0].weight")):
        to_messages(with_blocks({"text": "a", "weight": weight}))


def test_a_role_that_is_no_text_is_refused():
    """Hostile or broken rows get a RowError like all others."""
    with pytest.raises(RowError, match=re.escape("messages[0].role")):
        to_messages({"messages": [{"role": ["user"], "content": "x"}, REPLY]})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
TURNS = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": JSON}),
    max_size=3,
)


@given(
    JSON
    | st.fixed_dictionaries({"messages": JSON | TURNS})
    | st.fixed_dictionaries({"question": JSON, "answer": JSON})
)
def test_any_json_gives_a_conversation_or_a_row_error(row):
    """No other exception; and what is accepted ends in an assistant turn with text."""
    try:
        messages = to_messages(row)
    except RowError:
        return
    assert messages[-1].role == "assistant" and messages[-1].text.strip()


@pytest.mark.parametrize(
    "row",
    [
        "2+2?",
        {"messages": [USER]},
        {"messages": [USER, REPLY]},
        {"question": "2+2?", "answer": "4"},
        {"instruction": "2+2?", "output": "4"},
        {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
    ],
)
def test_a_prompt_ends_before_the_answer(row):
    """From a text, from an open conversation, and from training rows of any layout."""
    assert flat(to_prompt(row)) == [("user", "2+2?")]


def test_a_prompt_keeps_the_turns_before_the_last_answer():
    """Earlier turns are context."""
    talk = to_prompt({"messages": [USER, REPLY, {"role": "user", "content": "and 3+3?"}, REPLY]})
    assert flat(talk) == [*TALK, ("user", "and 3+3?")]


def test_a_prompt_that_ends_in_a_question_keeps_it():
    """A chat that goes on: the last user turn is what the model has to answer."""
    talk = to_prompt({"messages": [USER, REPLY, {"role": "user", "content": "and 3+3?"}]})
    assert flat(talk)[-1] == ("user", "and 3+3?")


@pytest.mark.parametrize("row", [["a"], {"prompt": "x"}, {"question": "q"}, {"messages": "x"}])
def test_a_prompt_that_does_not_fit_is_a_row_error(row):
    """As for training rows."""
    with pytest.raises(RowError):
        to_prompt(row)


@pytest.mark.parametrize("row", [5, None])
def test_a_prompt_that_is_no_row_is_a_row_error(row):
    """A number among the prompts."""
    with pytest.raises(RowError):
        to_prompt(row)


def test_a_prompt_ignores_empty_columns():
    """Mixed layouts in one table leave columns empty, which `to_messages` accepts."""
    assert flat(to_prompt({"messages": None, "question": "2+2?", "answer": "4"})) == [
        ("user", "2+2?")
    ]


def test_a_system_column_is_the_first_turn():
    """As ShareGPT sets with a column of their own for it have."""
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    messages = to_messages({"system": "Be brief.", "conversations": turns})
    assert [(m.role, m.text) for m in messages] == [
        ("system", "Be brief."),
        ("user", "q"),
        ("assistant", "a"),
    ]
    assert flat(to_messages({"SYSTEM": "Be brief.", "question": "q", "answer": "a"})) == flat(
        messages
    )
    with pytest.raises(RowError, match=r"field system: .*keep one"):
        to_messages({"system": "Be brief.", "text": "q a"})


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_every_name_of_the_thought_is_read(field):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", field: "t"}]
    assert to_messages({"messages": turns})[1].text == "<think>\nt\n</think>\n\na"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"tools": [{"name": "f"}]}, "field tools: "),
        ({"turn": {"tool_calls": [{"name": "f"}]}}, r"messages\[1\].tool_calls"),
        (
            {"turn": {"reasoning": "t", "content": "<think>u</think>a"}},
            r"messages\[1\].reasoning: .*keep one",
        ),
    ],
)
def test_what_would_be_lost_is_refused(row, words):
    """Tools, and a thought told twice."""
    turn = {"role": "assistant", "content": "a", **row.pop("turn", {})}
    with pytest.raises(RowError, match=words):
        to_messages({"messages": [{"role": "user", "content": "q"}, turn], **row})


# ---------------------------------------------------------------------------------------------- parts, tags, weights


def test_tags_of_blocks_are_kept():
    """They name what is followed while training; a block without one has None."""
    row = with_blocks({"text": "a", "tag": "first", "weight": -1}, {"text": "b"})
    assert to_messages(row)[-1].blocks == [Block("a", -1, "first"), Block("b")]


def test_the_weight_of_a_message_holds_for_its_blocks():
    """Zero too; a block's own weight wins."""
    turn = {
        "role": "assistant",
        "weight": 0,
        "content": [{"text": "a"}, {"text": "b", "weight": 0.5}],
    }
    row = {"messages": [USER, {**REPLY, "weight": 0}, USER, turn]}
    weights = [block.weight for message in to_messages(row) for block in message.blocks]
    assert weights == [None, 0, None, 0, 0.5]


@pytest.mark.parametrize("kind", ["reasoning", "thinking", "reasoning_content"])
@pytest.mark.parametrize("field", ["text", "value", "thinking"])
def test_a_thinking_part_is_the_thought(kind, field):
    """As APIs return it; the part's weight and tag hold for the thought and its tags."""
    part = {"type": kind, field: " 2+2=4 ", "weight": 0.5, "tag": "t"}
    blocks = to_messages(with_blocks(part, {"type": "text", "value": "4"}))[-1].blocks
    assert blocks == [Block("<think>\n2+2=4\n</think>\n\n", 0.5, "t"), Block("4")]


def test_an_empty_thinking_part_adds_no_tags():
    assert (
        to_messages(with_blocks({"type": "thinking", "thinking": " "}, {"text": "4"}))[-1].text
        == "4"
    )


def test_one_thought_under_two_names_is_one_thought():
    """Some servers write both; two different ones are refused."""
    turn = {"role": "assistant", "content": "4", "reasoning": "t", "reasoning_content": "t"}
    assert to_messages({"messages": [USER, turn]})[-1].text == "<think>\nt\n</think>\n\n4"
    with pytest.raises(RowError, match="keep one"):
        to_messages({"messages": [USER, {**turn, "reasoning": "u"}]})


# ---------------------------------------------------------------------------------------------- single layouts


def test_an_instruction_with_a_system_prompt_and_input_is_of_the_user():
    """A conversation has one system prompt."""
    row = {"system": "Be brief.", "instruction": "Add up.", "input": "2+2", "output": "4"}
    assert flat(to_messages(row)) == [
        ("system", "Be brief."),
        ("user", "Add up.\n\n2+2"),
        ("assistant", "4"),
    ]
    assert flat(to_messages({**row, "input": ""}))[:2] == [
        ("system", "Be brief."),
        ("user", "Add up."),
    ]


def test_only_the_completion_of_a_prompt_is_trained():
    """The assistant's turns in the prompt are context, unless they say what they weigh."""
    row = {"prompt": [USER, REPLY, USER, {**REPLY, "weight": 0.5}, USER], "completion": "4"}
    weights = [
        message.blocks[0].weight for message in to_messages(row) if message.role == "assistant"
    ]
    assert weights == [0, 0.5, None]


@pytest.mark.parametrize("thoughts", ["first", ["first", "second"]])
@pytest.mark.parametrize("answer", [{}, {"answer": "4"}])
def test_s1k_rows_are_known_by_their_fields(thoughts, answer):
    """With all the columns that they have, and with an answer for reference."""
    row = {
        "question": "q",
        "solution": "s",
        "cot": None,
        "thinking_trajectories": thoughts,
        "attempt": "a\n",
        **answer,
    }
    assert flat(to_messages(row)) == [("user", "q"), ("assistant", "<think>\nfirst\n</think>\n\na")]


def test_plain_text_is_one_message_of_the_role_text():
    """Formatted already, markers and all; no prompt can be cut from it."""
    row = {"text": "<reasoning>t</reasoning> Q: a\nA: b"}
    assert to_messages(row) == [Message("text", [Block(row["text"])])]
    with pytest.raises(
        RowError, match="field text: no turn to answer; a prompt is text, or a row with a turn"
    ):
        to_prompt(row)


def test_an_answer_with_tags_and_mark_keeps_its_tags():
    """Its thought is told already."""
    text = "<think>2+2=4</think>\n#### 4"
    assert to_messages({"question": "q", "answer": text})[-1].text == text


# ---------------------------------------------------------------------------------------------- format=


BOTH = {"messages": [USER, REPLY], "question": "q", "answer": "a #### b"}


def test_a_name_settles_which_layout():
    """Also for prompts."""
    assert flat(to_messages(BOTH, "messages")) == TALK
    assert flat(to_messages(BOTH, "question"))[0] == ("user", "q")
    assert flat(to_prompt(BOTH, "question")) == [("user", "q")]


def test_a_map_leads_fields_to_columns():
    """Nested, with a dot in the name of the column, with optional fields, and to the exclusion of all other columns."""
    row = {"problem": {"problem": "2+2?"}, "a.b": "4", "sys": "s", **BOTH}
    columns = {"problem": "problem.problem", "solution": "a.b"}
    assert flat(to_messages(row, columns)) == [("user", "2+2?"), ("assistant", "4")]
    assert flat(to_prompt(row, columns)) == [("user", "2+2?")]
    columns = {"system": "sys", "instruction": "problem.problem", "output": "a.b", "input": "none"}
    assert flat(to_messages(row, columns))[0] == ("system", "s")


def test_a_function_makes_rows_of_a_known_layout():
    """Of any, without naming it."""
    assert flat(to_messages({"q": "2+2?"}, lambda row: {"problem": row["q"], "solution": "4"}))[
        0
    ] == ("user", "2+2?")


@pytest.mark.parametrize(
    ("format", "words"),
    [
        ("answers", "'answers' is no layout; known: messages: messages; sharegpt"),
        ({"title": "a", "answer": "b"}, "title.*maps no layout to columns"),
        ({"question": ["a"], "answer": "b"}, "maps no layout to columns"),
        (
            {"question": "a"},
            "maps no layout to columns; known: messages: messages; sharegpt",
        ),
        ({"question": "a", "answer": "b", "text": "c"}, "maps no layout to columns"),
    ],
)
def test_a_format_that_cannot_be_is_no_fault_of_the_row(format, words):
    """A ValueError, and no RowError, so that nobody counts every row as bad."""
    with pytest.raises(ValueError, match=words) as error:
        to_messages(BOTH, format)
    assert not isinstance(error.value, RowError)


@pytest.mark.parametrize(
    ("format", "words"),
    [
        ("problem", "field problem: missing, and the layout problem needs it"),
        (
            {"problem": "question", "solution": "answer.final"},
            "field answer.final: missing, and the layout problem needs it",
        ),
        ({"problem": "question", "solution": "messages"}, r"field messages: expected text, got \["),
        (lambda row: None, "expected a row that is a dictionary, got None"),
        (lambda row: {"a": 1}, r"\['a'\] fit no layout"),
        (lambda row: {"problem": 3, "solution": "s"}, "field problem: expected text, got 3"),
    ],
)
def test_a_row_that_lacks_what_the_format_wants_is_named(format, words):
    """By its own column."""
    with pytest.raises(RowError, match=words):
        to_messages(BOTH, format)


# ---------------------------------------------------------------------------------------------- references


@pytest.mark.parametrize(
    ("row", "reference"),
    [
        ({"question": "q", "answer": "7"}, "7"),
        ({"messages": [USER, REPLY], "answer": 7}, "7"),
        ({"question": "q", "ANSWER": 0.5}, "0.5"),
        ({"Answer": Decimal("1.50"), "answer": None}, "1.50"),
        ({"question": "q", "answer": None}, None),
        ({"question": "q"}, None),
        ("q", None),
    ],
)
def test_the_reference_of_a_row_is_its_answer(row, reference):
    """In any case, and as text where it is a number; an empty column is none."""
    assert reference_of(row) == reference


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"Answer": ["7"]}, r"field Answer: expected text, got \["),
        ({"answer": True}, "field answer: expected text, got True"),
        ({"answer": float("nan")}, "field answer: expected text, got nan"),
        ({"answer": "7", "Answer": "8"}, "'answer' and 'Answer'"),
    ],
)
def test_a_reference_that_is_no_answer_is_refused(row, words):
    with pytest.raises(RowError, match=words):
        reference_of(row)


# ---------------------------------------------------------------------------------------------- thought markers

OPENINGS = ["<|begin_of_thought|>", "<reasoning>", "[THINK]", "<thinking>"]
CLOSINGS = ["<|end_of_thought|>", "</reasoning>", "[/THINK]", "</thinking>"]


@pytest.mark.parametrize(("opening", "closing"), list(zip(OPENINGS, CLOSINGS, strict=True)))
def test_other_families_markers_become_the_think_tags(opening, closing):
    """The first pair, at the start of the assistant's text; the message says so. The user's text stays."""
    text = f"\n{opening}a{closing}b{opening}c{closing}"
    for row in (
        {"question": text, "answer": text},
        {"messages": [{**USER, "content": text}, {**REPLY, "content": text}]},
    ):
        user, reply = to_messages(row)
        assert (user.text, user.changed) == (text, None)
        assert reply.text == f"\n<think>a</think>b{opening}c{closing}"
        assert reply.changed == f"{opening} -> <think>"


@pytest.mark.parametrize(
    "text",
    [
        "a<thinking>b</thinking>c",
        "<thinking>a</thinking><think>b</think>c",
        "[think]a[/think]b",
        "<think>a</think>b",
    ],
)
def test_other_text_is_not_changed(text):
    """Markers later on, beside think tags, or in another case."""
    message = to_messages({"prompt": "q", "completion": text})[-1]
    assert (message.text, message.changed) == (text, None)


def test_an_unclosed_marker_is_replaced_too():
    """The renderer flags it, as it does an unclosed think tag."""
    assert to_messages({"prompt": "q", "completion": "[THINK]a"})[-1].text == "<think>a"


@pytest.mark.parametrize(
    ("after", "answer"),
    [
        ("\n\n<|begin_of_solution|>\n\nb \n<|end_of_solution|>\n", "\n\nb"),
        ("<|begin_of_solution|>b", "b"),
        ("\nb", "\nb"),
        ("<|begin_of_solution|>  <|end_of_solution|>", ""),
    ],
)
def test_the_markers_of_a_solution_go(after, answer):
    """With the white space inside them."""
    row = {"prompt": "q", "completion": f"<|begin_of_thought|>\na\n<|end_of_thought|>{after}"}
    assert to_messages(row)[-1].text == f"<think>\na\n</think>{answer}"


@given(st.data())
def test_markers_across_blocks_leave_weights_and_tags_on_their_text(data):
    """Wherever the text is cut into blocks, what remains of each character has the weight that it had."""
    text = (
        " <|begin_of_thought|> 12\n<|end_of_thought|>\n<|begin_of_solution|>34\n<|end_of_solution|>"
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    edges = [0, *cuts, len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    message = to_messages(
        with_blocks(*({"text": p, "weight": i, "tag": str(i)} for i, p in enumerate(pieces)))
    )[-1]
    assert message.text == " <think> 12\n</think>\n34"
    weight_at = {char: sum(cut <= text.index(char) for cut in cuts) for char in "1234"}
    for i, block in enumerate(message.blocks):
        assert (block.weight, block.tag) == (i, str(i))
        assert all(weight_at[char] == i for char in block.text if char in weight_at)


# ---------------------------------------------------------------------------------------------- hostile values


def nested(depth: int) -> list:
    """A list in a list in a list."""
    value = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        nested(100_000),
        {"a": nested(100_000)},
        "x" * 5_000_000,
        b"x" * 5_000_000,
        set(range(9)),
        object(),
    ],
    ids=[
        "deep",
        "deep in a dictionary",
        "long text",
        "long bytes",
        "set",
        "object",
    ],
)
def test_a_hostile_value_is_a_short_row_error_wherever_it_stands(value):
    """Neither a RecursionError, nor a message of megabytes."""
    turn = {"role": "assistant", "content": "a"}
    rows = [
        [value],
        {"question": "q", "answer": [value]},
        {"messages": [value]},
        {"messages": [USER, {**turn, "weight": value}]},
    ]
    rows += [
        {"messages": [{**turn, "role": value}]},
        with_blocks(value),
        with_blocks({"type": value}),
        {"a": value},
    ]
    for row in rows:
        with pytest.raises(RowError) as error:
            to_messages(row)
        assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    "row",
    [
        {"question": "a\ud800", "answer": "b"},
        with_blocks({"text": "\udfff"}),
        with_blocks({"text": "a", "tag": "\ud800"}),
    ],
)
def test_half_a_surrogate_pair_is_refused(row):
    """It cannot be encoded; the message can."""
    with pytest.raises(RowError, match="surrogate") as error:
        to_messages(row)
    assert error.value.field and str(error.value).encode()


# ---------------------------------------------------------------------------------------------- real rows


def read(path) -> list[dict]:
    text = path.read_text(encoding="utf-8")
    return (
        json.loads(text)
        if path.suffix == ".json"
        else [json.loads(line) for line in text.splitlines()]
    )


@pytest.mark.parametrize(
    ("name", "count"),
    [("gsm8k/train.jsonl", 7473), ("gsm8k/test.jsonl", 1319), ("instructions/instruction_input_output.json", 1100),
     ("openweights/train.jsonl", 98), ("openweights/weighted_data.jsonl", 10), ("openweights/logp_tracking.jsonl", 10)],
)  # fmt: skip
def test_every_row_of_the_real_sets_is_read(shared, name, count):
    """None refused, each with a question and an answer."""
    talks = [to_messages(row) for row in read(shared / "datasets" / name)]
    assert len(talks) == count and all(len(talk) >= 2 for talk in talks)
    if "gsm8k" in name:
        assert all(
            re.fullmatch(r"(?s)<think>\n.+\n</think>\n\n-?[\d,.]+", talk[-1].text) for talk in talks
        )


def test_real_weights_and_tags_are_read(shared):
    """The openweights layout."""
    (row,) = read(shared / "datasets" / "openweights" / "weighted_data_test.jsonl")
    assert to_messages(row)[-1].blocks == [
        Block("This goes down", -1, "minimize"),
        Block("This goes up", 1, "maximize"),
        Block("down again", -1, "minimize-again"),
    ]


def test_real_reasoning_parts_are_read_but_not_tool_calls(shared):
    """All 25 rows have tools. Without the definitions, 21 call some, one has a stray tag, and 3 can be used."""
    rows = read(shared / "datasets" / "reasoning_parts" / "messages_with_reasoning_25.jsonl")
    assert len(rows) == 25
    refused, talks = [], []
    for row in rows:
        with pytest.raises(RowError, match="field tools: "):
            to_messages(row)
        try:
            talks.append(to_messages({"messages": row["messages"]}))
        except RowError as error:
            refused.append(error)
    assert len(talks) == 3 and sum("'tool_call'" in str(error) for error in refused) == 21
    assert [str(error) for error in refused if "'tool_call'" not in str(error)] == [
        "field messages[2].content[0]: a second thought in the turn; keep one"
    ]
    assert all(
        m.text.startswith("<think>\n") for talk in talks for m in talk if m.role == "assistant"
    )


def test_real_traces_are_read_through_a_map(shared):
    """Their problem is a column in a column."""
    rows = read(shared / "datasets" / "r1_traces" / "thought_anchors_20.jsonl")
    for row in rows:
        talk = to_messages(row, {"problem": "problem.problem", "solution": "solution"})
        assert flat(talk) == [("user", row["problem"]["problem"]), ("assistant", row["solution"])]
