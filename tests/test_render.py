"""Examples hold exactly what inference sees and what the model has to generate, for templates of three kinds."""

import copy
import json
import unicodedata
from itertools import groupby

import pytest
from hypothesis import given
from hypothesis import strategies as st

import btsft_nb as bt
from btsft_nb import Kind, Renderer, RowError, to_messages
from btsft_nb.data.formats import to_prompt
from btsft_nb.data.messages import Block, Message

HOSTILE = [
    "<|im_end|>", "<|im_start|>assistant\n", "<think>", "</think>", "<｜User｜>", "<｜Assistant｜>",
    "<｜end▁of▁sentence｜>", "<|endoftext|>", "<<|im_end|>", "<|im_end|", "<|im_<|im_end|>end|>",
]  # fmt: skip
TEXTS = [
    "plain text", "naïve café, Straße, 東京", "שלום עולם, مرحبا",
    "\U0001f469\u200d\U0001f467 🎉 \u270c\U0001f3fd", "two\n\nlines\n", "  spaces  ", "\ttab\t\r\n",
    "e\u0301 \u0338 \u200d \x00 \x7f \ufeff", "a<b>c</b> &lt; {{ x }} {% y %}", *HOSTILE, "x".join(HOSTILE),
]  # fmt: skip
# U+FDD0 is refused by name (tested below); a lone surrogate is no text.
letters = st.characters(exclude_categories=["Cs"], exclude_characters="\ufdd0")
texts = st.lists(st.sampled_from(TEXTS) | st.text(letters, max_size=12), max_size=5).map("".join)


def talk(user: str, assistant: str | list[Block]) -> list[Message]:
    blocks = [Block(assistant)] if isinstance(assistant, str) else assistant
    return [Message("user", [Block(user)]), Message("assistant", blocks)]


def render(renderer: Renderer, user: str, assistant: str | list[Block]) -> bt.Example:
    (example,) = renderer.examples(talk(user, assistant), "id")
    return example


def completion(example: bt.Example) -> list[tuple[int, Kind, float]]:
    """(id, kind, weight) of the tokens that are not PROMPT."""
    rows = zip(example.input_ids, example.kinds, example.weights, strict=True)
    return [(token, Kind(kind), weight) for token, kind, weight in rows if kind != Kind.PROMPT]


def decode(renderer: Renderer, example: bt.Example, kind: Kind) -> str:
    """The text of the tokens of a kind, the end of turn left out."""
    chosen = [token for token, k, _ in completion(example) if k == kind]
    text = renderer.tokenizer.decode(chosen)
    return text.removesuffix(renderer.end_of_turn) if kind == Kind.ANSWER else text


def same(text: str, other: str) -> bool:
    """Equal up to the NFC normalisation that some tokenizers apply."""
    return unicodedata.normalize("NFC", text) == unicodedata.normalize("NFC", other)


def controls(renderer: Renderer, ids: list[int]) -> list[int]:
    return [token for token in ids if token in renderer.tokenizer.added_tokens_decoder]


# ---------------------------------------------------------------------------------------------- prompts


@given(user=texts)
def test_the_prompt_is_the_templates_generation_prompt(renderer, user):
    """Whatever the user writes, the prompt's tokens spell what the template spells."""
    turns = [{"role": "user", "content": user}]
    wanted = renderer.tokenizer.apply_chat_template(
        turns, tokenize=False, add_generation_prompt=True
    )
    assert same(renderer.tokenizer.decode(renderer.prompt_ids(to_prompt(user))), wanted)


@pytest.mark.parametrize("user", ["What is 2+2?", "  a\n\nb ", "東京 🎉", ""])
def test_harmless_prompts_have_the_templates_own_ids(renderer, user):
    """No second BOS, no other merges: the ids that `apply_chat_template` makes at inference."""
    turns = [{"role": "user", "content": user}]
    wanted = renderer.tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False
    )
    assert renderer.prompt_ids(to_prompt(user)) == list(wanted)


@given(user=texts, thought=texts, answer=texts)
def test_an_example_is_the_prompt_and_then_the_completion(renderer, user, thought, answer):
    """PROMPT tokens are exactly `prompt_ids`, weigh nothing, and all lists have one length. Kinds tile the completion
    (TAG, THINK, TAG, ANSWER; only the first close tag ends the thought), and decoding gives thought and answer back.
    The tags are single tokens and the only ones, whoever spells more of them, and the control tokens are those of the
    same conversation with harmless text."""
    example = render(renderer, user, f"<think>{thought}</think>{answer}")
    prompt = renderer.prompt_ids(to_prompt(user))
    n = len(prompt)
    assert example.input_ids[:n] == prompt
    assert [kind == Kind.PROMPT for kind in example.kinds] == [True] * n + [False] * (
        len(example.input_ids) - n
    )
    assert len(example.weights) == len(example.input_ids) and not any(example.weights[:n])

    thought, _, answer = f"{thought}</think>{answer}".partition("</think>")
    kinds = [kind for kind, _ in groupby(kind for _, kind, _ in completion(example))]
    assert kinds == [Kind.TAG, Kind.THINK, Kind.TAG, Kind.ANSWER] or (
        not thought and Kind.THINK not in kinds
    )
    assert same(decode(renderer, example, Kind.THINK), thought)
    assert same(decode(renderer, example, Kind.ANSWER), answer)

    tags = list(bt.tag_ids(renderer.tokenizer))
    assert [token for token, kind, _ in completion(example) if kind == Kind.TAG] == tags
    assert [token for token in example.input_ids if token in tags] == tags
    harmless = render(renderer, "x", "<think>x</think>x")
    assert controls(renderer, example.input_ids) == controls(renderer, harmless.input_ids)


@given(answer=st.text(alphabet=" abc.\U0001f389", min_size=1, max_size=12))
def test_untagged_examples_start_with_the_prompt_too(renderer, answer):
    """Also where no tag separates prompt and completion."""
    if answer.strip():
        prompt = renderer.prompt_ids(to_prompt("hi"))
        assert render(renderer, "hi", answer).input_ids[: len(prompt)] == prompt


@pytest.mark.parametrize("assistant", ["\nanswer", "\n<think>a</think>b"])
@pytest.mark.parametrize("name", ["tiny_tokenizer", "qwen3"])
def test_a_completion_that_begins_with_a_newline_keeps_the_prompt(request, name, assistant):
    """The generation prompt ends in a newline, which the tokenizer would merge with the completion's."""
    renderer = Renderer(request.getfixturevalue(name))
    prompt = renderer.prompt_ids(to_prompt("hi"))
    assert render(renderer, "hi", assistant).input_ids[: len(prompt)] == prompt


# ---------------------------------------------------------------------------------------------- completions


@pytest.mark.parametrize("control", ["end of turn", "open tag", "close tag"])
def test_blocks_cannot_spell_a_control_token_together(renderer, control):
    """Half of the spelling in one block, half in the next."""
    spelled = dict(zip(["open tag", "close tag"], ["<think>", "</think>"], strict=True)).get(
        control, renderer.end_of_turn
    )
    halves = [Block("<think>a</think>b" + spelled[:4]), Block(spelled[4:] + "c", 0.5)]
    example = render(renderer, "hi", halves)
    assert (
        len(controls(renderer, [token for token, *_ in completion(example)])) == 3
    )  # both tags and the end of turn


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_user_text_leaves_the_completion_as_it_is(renderer, hostile):
    """The two paths of tokenizing, with and without control spellings, agree."""
    assistant = "<think>\nIt's 3.5 naïve €.\n</think>\n\nAnswer: 7"
    assert completion(render(renderer, hostile, assistant)) == completion(
        render(renderer, "harmless", assistant)
    )


@pytest.mark.parametrize("name", ["qwen3", "r1"])
def test_thoughts_survive_where_the_template_strips_them(request, name):
    """Both templates drop thoughts from turns; the one that is trained must keep it."""
    tokenizer = request.getfixturevalue(name)
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "<think>SECRET</think>open"},
    ]
    history = [*turns, {"role": "user", "content": "more"}]
    assert "SECRET" not in tokenizer.apply_chat_template(
        history, tokenize=False
    )  # else this test tests nothing
    (example,) = Renderer(tokenizer).examples(to_messages({"messages": turns}), "id")
    assert tokenizer.decode([token for token, *_ in completion(example)]).startswith(
        "<think>SECRET</think>open"
    )


def test_the_end_of_turn_is_answer_and_trained(renderer):
    """It is the last token, a single one, and among the ids that stop sampling."""
    token, kind, weight = completion(render(renderer, "hi", "<think>a</think>b"))[-1]
    assert (kind, weight) == (Kind.ANSWER, 1.0)
    assert renderer.tokenizer.decode([token]) == renderer.end_of_turn
    assert {token, renderer.tokenizer.eos_token_id} == set(renderer.stop_ids())


# ---------------------------------------------------------------------------------------------- several turns

THREE_TURNS = [
    Message("user", [Block("first")]),
    Message("assistant", [Block("<think>t1</think>a1")]),
    Message("user", [Block("second")]),
    Message("assistant", [Block("<think>t2</think>a2")]),
    Message("user", [Block("third")]),
    Message("assistant", [Block("a3")]),
]


@pytest.mark.parametrize("name", ["qwen3", "r1"])
def test_a_template_that_rewrites_history_gives_an_example_a_turn(request, name):
    """Each is what inference sees at that turn: history without thoughts, and then the turn with its own."""
    renderer = Renderer(request.getfixturevalue(name))
    examples = renderer.examples(THREE_TURNS, "id")
    assert len({example.id for example in examples}) == 3
    for i, (example, thought, answer) in enumerate(
        zip(examples, ["t1", "t2", ""], ["a1", "a2", "a3"], strict=True)
    ):
        prompt = renderer.prompt_ids(THREE_TURNS[: 2 * i + 1])
        assert example.input_ids[: len(prompt)] == prompt
        assert decode(renderer, example, Kind.THINK) == thought
        assert decode(renderer, example, Kind.ANSWER) == answer
    assert "t1" not in renderer.tokenizer.decode(examples[2].input_ids)
    assert examples[2].flags == ["untagged"] and examples[0].flags == []


def test_a_template_that_keeps_history_gives_one_example(tiny_tokenizer):
    """All assistant turns are trained in one pass, the text between them is not."""
    renderer = Renderer(tiny_tokenizer)
    (example,) = renderer.examples(THREE_TURNS, "id")
    assert example.id == "id"
    end = renderer.end_of_turn
    assert tiny_tokenizer.decode([token for token, *_ in completion(example)]) == (
        f"<think>t1</think>a1{end}<think>t2</think>a2{end}a3{end}"
    )
    runs = [is_prompt for is_prompt, _ in groupby(kind == Kind.PROMPT for kind in example.kinds)]
    assert runs == [True, False] * 3


def test_turns_without_thoughts_stay_together(qwen3):
    """Qwen3's template rewrites nothing where there is no thought."""
    messages = [*talk("q1", "a1"), *talk("q2", "a2")]
    (example,) = Renderer(qwen3).examples(messages, "id")
    assert decode(Renderer(qwen3), example, Kind.ANSWER) == "a1<|im_end|>a2"


def test_system_and_tool_turns_are_prompt(renderer):
    """Whatever else the conversation holds, only the assistant is trained."""
    messages = [Message("system", [Block("Be brief.")]), *talk("hi", "<think>a</think>b")]
    (example,) = renderer.examples(messages, "id")
    assert (
        decode(renderer, example, Kind.THINK) == "a"
        and decode(renderer, example, Kind.ANSWER) == "b"
    )
    assert "Be brief." in renderer.tokenizer.decode(
        [t for t, k in zip(example.input_ids, example.kinds, strict=True) if not k]
    )


# ---------------------------------------------------------------------------------------------- weights


@given(
    before=st.text("abcdefghij .,\n", max_size=25),
    after=st.text("abcdefghij .,\n", max_size=25),
    answer=st.booleans(),
)
def test_a_block_weight_lands_on_the_tokens_of_its_text(renderer, before, after, answer):
    """Weights change no id, and a token that straddles the boundary belongs to the later block."""
    parts = (
        ["<think>t</think>", before, after] if answer else ["<think>", before, after + "</think>a"]
    )
    whole = render(renderer, "hi", "".join(parts))
    example = render(
        renderer, "hi", [Block(parts[0]), Block(parts[1], 0.25), Block(parts[2], -2.0)]
    )
    assert example.input_ids == whole.input_ids and example.kinds == whole.kinds
    rows = [row for row in completion(example) if row[1] == (Kind.ANSWER if answer else Kind.THINK)]
    first = [token for token, _, weight in rows if weight == 0.25]
    assert [weight for _, _, weight in rows[: len(first)]] == [0.25] * len(first)
    assert {weight for _, _, weight in rows[len(first) : len(rows) - answer]} <= {-2.0}
    assert before.startswith(renderer.tokenizer.decode(first))
    longer = renderer.tokenizer.decode([token for token, *_ in rows[: len(first) + 1]])
    assert len(rows) == len(first) or len(longer) > len(before)


def test_a_tag_takes_the_weight_of_the_block_it_begins_in(renderer):
    """A boundary inside a tag is passed over."""
    blocks = [Block("<th", 2.0), Block("ink>ab</thi", 0.5), Block("nk>c", -1.0)]
    rows = completion(render(renderer, "hi", blocks))
    assert [weight for _, kind, weight in rows if kind == Kind.TAG] == [2.0, 0.5]
    assert {weight for _, kind, weight in rows if kind == Kind.THINK} == {0.5}
    assert [weight for _, kind, weight in rows if kind == Kind.ANSWER] == [-1.0, 1.0]


def test_empty_blocks_change_nothing(renderer):
    """At the start, in the middle, at the end, with any weight."""
    blocks = [
        Block("", 5.0),
        Block("<think>a"),
        Block("", 0.0),
        Block("</think>b"),
        Block("", -1.0),
    ]
    assert render(renderer, "hi", blocks) == render(renderer, "hi", "<think>a</think>b")


def test_where_every_block_weighs_nothing_the_end_of_turn_does_too(renderer):
    """The turn is context, then."""
    example = render(renderer, "hi", [Block("<think>a", 0.0), Block("</think>b", 0.0)])
    assert not any(example.weights)


def test_a_turn_without_weight_beside_one_with(tiny_tokenizer):
    """Each end of turn follows its own turn."""
    messages = [*talk("q", [Block("one", 0.0)]), *talk("q", [Block("two", 3.0)])]
    (example,) = Renderer(tiny_tokenizer).examples(messages, "id")
    ends = [
        weight for token, _, weight in completion(example) if token == tiny_tokenizer.eos_token_id
    ]
    assert ends == [0.0, 1.0]


def test_the_first_token_is_never_supervised(tiny_tokenizer):
    """Where there is no prompt at all, nothing predicts the completion's first token."""
    (example,) = Renderer(tiny_tokenizer).examples(
        [Message("text", [Block("<think>a</think>b")])], "id"
    )
    assert example.kinds[0] == Kind.TAG
    assert example.weights[0] == 0.0 and all(example.weights[1:])


# ---------------------------------------------------------------------------------------------- prompts that open


@pytest.fixture(scope="module")
def opened(tiny_tokenizer) -> Renderer:
    """A template whose generation prompt ends in <think> and a newline, as those of thinking-only models do."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "<|im_start|>assistant\n", "<|im_start|>assistant\n<think>\n"
    )
    renderer = Renderer(tokenizer)
    assert tokenizer.decode(renderer.prompt_ids(to_prompt("hi"))).endswith("assistant\n<think>\n")
    return renderer


@pytest.mark.parametrize(
    "assistant", ["<think>\nab\n</think>\n\nc", "<think>ab\n</think>\n\nc", "ab\n</think>\n\nc"]
)
def test_what_the_prompt_supplies_is_not_trained(opened, assistant):
    """Tag and newline stand in the prompt once, and the completion starts inside the thought."""
    example = render(opened, "hi", assistant)
    prompt = opened.prompt_ids(to_prompt("hi"))
    assert example.input_ids[: len(prompt)] == prompt and not any(example.weights[: len(prompt)])
    assert (
        opened.tokenizer.decode([t for t, *_ in completion(example)])
        == "ab\n</think>\n\nc<|im_end|>"
    )
    assert example.input_ids.count(bt.tag_ids(opened.tokenizer)[0]) == 1
    assert [kind for kind, _ in groupby(kind for _, kind, _ in completion(example))] == [
        Kind.THINK, Kind.TAG, Kind.ANSWER
    ]  # fmt: skip
    assert example.flags == []


def test_several_turns_of_a_prompt_that_opens(opened):
    """One example where the history spells what the prompts supplied, and each close tag is trained."""
    (example,) = opened.examples(
        [*talk("q1", "<think>\na\n</think>b"), *talk("q2", "<think>\nc\n</think>d")], "id"
    )
    assert (
        opened.tokenizer.decode([t for t, *_ in completion(example)])
        == "a\n</think>b<|im_end|>c\n</think>d<|im_end|>"
    )


def test_a_prompt_that_opens_refuses_a_turn_without_thought(opened):
    """The model would learn to answer inside the thought."""
    for assistant in ("just an answer", "Sure. <think>a</think>b"):
        with pytest.raises(RowError, match=r"opens a thought.*the turn begins with none"):
            render(opened, "hi", assistant)


@pytest.mark.parametrize("assistant", ["<think>", "  <think>", "<think>\n", "<think>\n\n"])
def test_a_prompt_that_opens_refuses_a_turn_with_nothing_after_the_tag(opened, assistant):
    """Nothing would be left to learn but the end of the turn, in the middle of a thought."""
    with pytest.raises(RowError, match="nothing follows <think>"):
        render(opened, "hi", assistant)


@pytest.mark.parametrize("strict", [True, False])
def test_one_such_turn_does_not_end_a_preparation(opened, strict):
    """Its row is dropped and counted."""
    rows = [{"question": "q", "answer": text} for text in ("<think>a</think>b", "<think>")]
    examples = bt.prepare(rows, opened.tokenizer, strict=strict)
    ((reason, numbers),) = examples.report.dropped.items()
    assert "nothing follows <think>" in reason and numbers == [1] and len(examples) == 1


def test_white_space_before_a_tag_that_the_prompt_supplies_is_dropped(opened):
    """Nothing may stand twice, and the example starts with the prompt."""
    example = render(opened, "hi", "\n<think>\nab\n</think>c")
    prompt = opened.prompt_ids(to_prompt("hi"))
    assert example.input_ids[: len(prompt)] == prompt


def test_an_empty_thought_after_a_prompt_that_opens(opened):
    """`<think>`, two newlines, `</think>`: how reasoning models write no thought."""
    example = render(opened, "hi", "<think>\n\n</think>\n\nc")
    prompt = opened.prompt_ids(to_prompt("hi"))
    assert example.input_ids[: len(prompt)] == prompt


# ---------------------------------------------------------------------------------------------- flags and errors


@pytest.mark.parametrize(
    ("assistant", "flags"),
    [
        ("<think>a</think>b", []),
        ("plain", ["untagged"]),
        ("<think>never closed", ["unclosed"]),
        ("never opened</think>b", ["unopened"]),
        ("<think>a</think>b</think>", ["extra tags"]),
        ("<think>a<think>b</think>c", ["extra tags"]),
        ("</think><think>a</think>b", ["extra tags", "text before the thought"]),
        ("<think>a</think><think>b</think>c", ["extra tags"]),
        ("<think> \n </think>b", ["empty thought"]),
        ("<think></think>b", ["empty thought"]),
        ("</think>b", ["empty thought", "unopened"]),
        ("Sure. <think>a</think>b", ["text before the thought"]),
    ],
)
def test_flags_say_what_is_odd_about_the_tags(renderer, assistant, flags):
    """And odd examples are rendered all the same, their text complete."""
    example = render(renderer, "hi", assistant)
    assert example.flags == flags
    assert (
        renderer.tokenizer.decode([t for t, *_ in completion(example)])
        == assistant + renderer.end_of_turn
    )


@pytest.mark.parametrize(
    ("assistant", "kinds"),
    [
        ("plain", [Kind.ANSWER]),
        ("<think>never closed", [Kind.TAG, Kind.THINK, Kind.ANSWER]),
        ("never opened</think>b", [Kind.THINK, Kind.TAG, Kind.ANSWER]),
        ("Sure. <think>a</think>b", [Kind.ANSWER, Kind.TAG, Kind.THINK, Kind.TAG, Kind.ANSWER]),
    ],
)
def test_kinds_of_odd_completions(renderer, assistant, kinds):
    """An unclosed thought is a thought; the end of turn is the answer's."""
    example = render(renderer, "hi", assistant)
    assert [kind for kind, _ in groupby(kind for _, kind, _ in completion(example))] == kinds


def test_the_noncharacter_is_refused(renderer):
    """U+FDD0 has a use in rendering."""
    with pytest.raises(RowError, match=r"U\+FDD0.*remove it"):
        render(renderer, "a\ufdd0b", "c")


@pytest.mark.parametrize(("user", "assistant"), [("\ud800", "a"), ("q", "\udfff")])
def test_a_lone_surrogate_is_a_row_error(tokenizer, user, assistant):
    r"""json.loads('"\ud800"') gives one, and no tokenizer takes it."""
    turns = [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]
    with pytest.raises(
        RowError, match=r"rows, row 0: field messages\[[01]\].content: half a surrogate pair"
    ):
        bt.prepare([{"messages": turns}], tokenizer)


def test_a_tokenizer_without_template_is_refused(tiny_tokenizer):
    """By name, with what would do."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match=r"no chat template.*use_template") as error:
        Renderer(tokenizer).prompt_ids(to_prompt("hi"))
    assert tokenizer.name_or_path in str(error.value)


def test_a_tokenizer_that_splits_the_tags_is_refused_and_the_advice_works(shared):
    """GPT-2 knows no think tags; as it pads with its end token, the end of turn is the end token."""
    tokenizer = bt.load_tokenizer(shared / "tokenizers" / "gpt2")
    turns = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    tokenizer.chat_template = turns + "{{ 'assistant: ' }}"
    with pytest.raises(ValueError, match=r"splits the think tags; call .*add_tags") as error:
        bt.tag_ids(tokenizer)
    assert tokenizer.name_or_path in str(error.value)
    assert bt.add_tags(tokenizer) == ["<think>", "</think>"]
    example = render(Renderer(tokenizer), "hi", "<think>a</think>b")
    assert (
        tokenizer.decode([t for t, *_ in completion(example)]) == "<think>a</think>b<|endoftext|>"
    )


def test_a_template_that_refuses_a_conversation_is_a_row_error(tiny_tokenizer):
    """With the roles that it was given."""
    tokenizer = copy.deepcopy(tiny_tokenizer)
    guard = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    )
    tokenizer.chat_template = guard + tokenizer.chat_template
    messages = [Message("system", [Block("s")]), *talk("hi", "there")]
    with pytest.raises(RowError, match=r"\['system', 'user'\].*no system here"):
        Renderer(tokenizer).examples(messages, "id")


def test_a_conversation_that_begins_with_the_assistant_is_a_row_error(tokenizer):
    """As many ShareGPT rows do: there is no prompt to learn from."""
    turns = [("gpt", "hello"), ("human", "hi"), ("gpt", "there")]
    with pytest.raises(
        RowError, match=r"rows, row 0: field conversations: the assistant speaks first; remove"
    ):
        bt.prepare(
            [{"conversations": [{"from": role, "value": text} for role, text in turns]}], tokenizer
        )


def test_white_space_before_the_tag_is_not_odd(renderer):
    """No flag for it."""
    assert render(renderer, "hi", "\n <think>a</think>b").flags == []


# ---------------------------------------------------------------------------------------------- real data


@pytest.mark.parametrize(("name", "step"), [("qwen3", 1), ("r1", 10)])
def test_all_of_gsm8k(request, shared, name, step):
    """7,473 rows, and every tenth: each is kept or counted, and each thought is the text before ####."""
    tokenizer = request.getfixturevalue(name)
    rows = bt.load_rows(shared / "datasets" / "gsm8k" / "train.jsonl")
    assert len(rows) == 7473
    rows = rows[::step]
    examples = bt.prepare(rows, tokenizer, max_length=300)
    report = examples.report
    assert report.kept == len(examples) and report.kept + report.n_dropped == len(rows)
    assert 0 < len(report.dropped["longer than max_length=300"]) < len(rows) / 10
    assert report.lengths["sequence"]["longest"] <= 300
    columns = examples.with_format("numpy")[:]
    pairs = zip(columns["input_ids"], columns["kinds"], strict=True)
    thoughts = tokenizer.batch_decode([ids[kinds == Kind.THINK] for ids, kinds in pairs])
    for at, text in zip(columns["id"], thoughts, strict=True):
        answer = rows[int(at.rpartition("#")[2])]["answer"]
        assert same(text.strip(), answer.rpartition("####")[0].strip())


@pytest.mark.parametrize("name", ["qwen3", "r1"])
def test_real_reasoning_traces(request, shared, name):
    """Twenty long traces of R1-Distill: nothing odd, nothing lost, hundreds to thousands of thought tokens each."""
    renderer = Renderer(request.getfixturevalue(name))
    lines = (
        (shared / "datasets" / "r1_traces" / "thought_anchors_20.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    traces = [json.loads(line) for line in lines]
    assert len(traces) == 20
    for trace in traces:
        example = render(renderer, trace["problem"]["problem"], "<think>\n" + trace["solution"])
        thought, _, answer = trace["solution"].partition("</think>")
        assert example.flags == [] and sum(kind == Kind.THINK for kind in example.kinds) > 300
        assert same(decode(renderer, example, Kind.THINK), "\n" + thought)
        assert same(decode(renderer, example, Kind.ANSWER), answer)
