"""Rows of every known layout become messages, and a row that does not fit is refused in words that help."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from btsft_nb import RowError, to_messages, to_prompt
from btsft_nb.formats import LAYOUTS, Block, Message

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
    ],
    ids=["messages", "messages as from/value", "sharegpt", "sharegpt as role/content", "instruction",
         "instruction, empty input", "instruction, no input", "question", "fields that are None or unknown"],
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
    turns = [("system", "s"), ("human", "u"), ("gpt", "a"), ("observation", "t"), ("assistant", "b")]
    row = {"conversations": [{"from": role, "value": text} for role, text in turns]}
    assert flat(to_messages(row)) == [
        ("system", "s"), ("user", "u"), ("assistant", "a"), ("tool", "t"), ("assistant", "b")
    ]  # fmt: skip


@pytest.mark.parametrize("weight", [0, 0.0, 0.25, 1, 3, -1, -0.5, None])
def test_block_weights_are_passed_through(weight):
    """Fractions, zeros and negative weights are data; a block without one has None."""
    given, bare = {"type": "text", "text": "a", "weight": weight}, {"text": "b"}
    assert to_messages(with_blocks(given, bare))[-1].blocks == [Block("a", weight), Block("b", None)]


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
    "no dict": (["a", 1], ["list", "['a', 1]", "JSON object"]),
    "text": ("hello", ["str", "'hello'", "JSON object"]),
    "unknown layout": (
        {"prompt": "a", "completion": "b"},
        ["'completion', 'prompt'", "no known layout", *(field for fields, _ in LAYOUTS.values() for field in fields)],
    ),
    "half a layout": ({"question": "a"}, ["['question']", "question, answer"]),
    "several layouts": ({"messages": [USER, REPLY], "question": "q", "answer": "a"}, ["several", "messages, question"]),
    "turns no list": ({"messages": "hi"}, ["'messages'", "str", "list of turns"]),
    "turn no dict": ({"conversations": [USER, "hi"]}, ["conversations[1]", "str", "role and content"]),
    "no turns": ({"messages": []}, ["'messages'", "no assistant turn", "[]"]),
    "no assistant": ({"messages": [USER]}, ["'messages'", "no assistant turn", "['user']"]),
    "assistant blank": ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, ["'messages'", "without text"]),
    "assistant None": ({"conversations": [USER, {"role": "assistant"}]}, ["'conversations'", "without text"]),
    "first assistant blank": (
        {"messages": [USER, {**REPLY, "content": ""}, USER, REPLY]}, ["'messages'", "without text", "remove the row"]
    ),
    "output blank": ({"instruction": "a", "output": ""}, ["'output'", "without text"]),
    "answer blank": ({"question": "a", "answer": "  "}, ["'answer'", "without text"]),
    "last of the user": ({"messages": [USER, REPLY, USER]}, ["'messages'", "the last turn", "user", "cut it off"]),
    "unknown role": (
        {"messages": [USER, {"role": "bot", "content": "x"}]}, ["messages[1].role", "'bot'", "assistant", "gpt"]
    ),
    "no role": ({"messages": [{"content": "x"}]}, ["messages[0].role", "None", "known: system, user"]),
    "content a number": (
        {"messages": [USER, {"role": "assistant", "content": 5}]}, ["messages[1].content", "int", "5"]
    ),
    "block an image": (
        with_blocks({"type": "image_url", "image_url": "u"}), ["messages[1].content[0]", "image_url", "'text'"]
    ),
    "block a text": (with_blocks({"text": "a"}, "b"), ["messages[1].content[1]", "'b'", "'text'"]),
    "block without text": (with_blocks({"type": "text"}), ["messages[1].content[0].text", "NoneType", "text wanted"]),
    "thought a list": (
        {"messages": [USER, {**REPLY, "reasoning_content": ["x"]}]}, ["messages[1].reasoning_content", "list", "text"]
    ),
    "instruction a list": ({"instruction": ["a"], "output": "b"}, ["instruction", "list", "text wanted"]),
    "input a number": ({"instruction": "a", "input": 3, "output": "b"}, ["input", "int", "text wanted"]),
    "question a number": ({"question": 3, "answer": "b"}, ["question", "int", "text wanted"]),
    "answer a number": ({"question": "a", "answer": 4}, ["answer", "int", "text wanted"]),
    "user weight": (
        {"messages": [{"role": "user", "content": [{"text": "q", "weight": 0.5}]}, REPLY]},
        ["'messages'", "weight", "user", "only what the assistant"],
    ),
}  # fmt: skip


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
    with pytest.raises(RowError, match=r"messages\[1\]\.content\[1\]\.weight: a number within") as error:
        to_messages(with_blocks({"text": "a"}, {"text": "b", "weight": weight}))
    assert repr(weight) in str(error.value)


@pytest.mark.parametrize("weight", [float("inf"), float("-inf"), pytest.param(10**400, id="an int beyond float")])
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
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
TURNS = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant"]), "content": JSON}), max_size=3)


@given(
    JSON | st.fixed_dictionaries({"messages": JSON | TURNS}) | st.fixed_dictionaries({"question": JSON, "answer": JSON})
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
    assert flat(to_prompt({"messages": None, "question": "2+2?", "answer": "4"})) == [("user", "2+2?")]


def test_a_system_column_is_the_first_turn():
    """As ShareGPT sets with a column of their own for it have."""
    turns = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    messages = to_messages({"system": "Be brief.", "conversations": turns})
    assert [(m.role, m.text) for m in messages] == [("system", "Be brief."), ("user", "q"), ("assistant", "a")]


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning", "thinking"])
def test_every_name_of_the_thought_is_read(field):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", field: "t"}]
    assert to_messages({"messages": turns})[1].text == "<think>\nt\n</think>\n\na"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"tools": [{"name": "f"}]}, "field 'tools'"),
        ({"turn": {"tool_calls": [{"name": "f"}]}}, r"messages\[1\].tool_calls"),
        ({"turn": {"reasoning": "t", "content": "<think>u</think>a"}}, r"messages\[1\].reasoning: .*keep one"),
    ],
)
def test_what_would_be_lost_is_refused(row, words):
    """Tools, and a thought told twice."""
    turn = {"role": "assistant", "content": "a", **row.pop("turn", {})}
    with pytest.raises(RowError, match=words):
        to_messages({"messages": [{"role": "user", "content": "q"}, turn], **row})
