"""Every tokenizer and every chat template at hand: the prompt is the template's, the completion what must follow it.

The templates are those of `shared` and of TRL's package, which is read and not imported. One that comes without its
tokenizer gets MiniMind's (byte-level BPE, 6,400 tokens: a copy takes 25 ms, one of Qwen3's 2 s), with the control
tokens that it spells. `REFUSED` names all that cannot be used, and why.
"""

import importlib.util
import json
import re
from itertools import groupby
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_render import completion, controls, same, talk, texts
from tokenizers import AddedToken

import btsft_nb as bt
from btsft_nb import Kind, Renderer, RowError, to_messages
from btsft_nb.data.chat_templates import NAMES, use_template
from btsft_nb.data.errors import UnsuitableRow
from btsft_nb.data.formats import to_prompt
from btsft_nb.data.messages import Block, Message

OPEN, CLOSE = "<think>", "</think>"
SHARED = Path(__file__).parents[2] / "shared" / "data"
TRL = importlib.util.find_spec("trl")
FILES = {
    re.sub(r"(\.tokenizer_config)?\.\w+$", "", path.name): path
    for path in (SHARED / "chat_templates").glob("*")
    if path.suffix == ".jinja" or '"chat_template"' in path.read_text(encoding="utf-8")
}
if TRL:
    FILES |= {
        f"trl/{path.stem}": path
        for path in Path(TRL.origin).with_name("chat_templates").glob("*.jinja")
    }
BASE = {f"{model}, {name}": (model, name) for model in ("gpt2", "opt", "smollm") for name in NAMES}
OWN = ("deepseek-r1-distill-qwen", "minimind", "phi-3-mini", "qwen3")

VISION = "the chat template leaves out the text of turns"
CHANNELS = "before an answer; set another one"
REFUSED = {
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "'NoneType' object is not iterable",  # its list of tools
    "trl/llava_next": "'str object' has no attribute 'text'",  # takes lists of texts and images
    "trl/llava_next_training": "'str object' has no attribute 'text'",
    "trl/idefics3": VISION, "trl/idefics3_training": VISION, "trl/smolvlm": VISION, "trl/smolvlm_training": VISION,
    "trl/gptoss": CHANNELS, "trl/gptoss_training": CHANNELS,
    "trl/muse_glimmer": CHANNELS, "trl/muse_glimmer_training": CHANNELS,
}  # fmt: skip
# A control token, as a template spells it.
CONTROL = re.compile(
    r"<\|[^|\s{}'\"<>]+\|?>|<[^|\s{}'\"<>]+\|>|<｜[^｜\s]+｜>|<(?:start|end)_of_\w+>|<sop>|\[/?[A-Zg]{3,}\]"
)


def with_template(name: str):
    """The tokenizer of a template's name: a base model with one of ours, its own, or MiniMind's with its tokens."""
    if name in BASE or name in OWN:
        model, template = BASE.get(name, (name, None))
        tokenizer = bt.load_tokenizer(SHARED / "tokenizers" / model)
        tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in (OPEN, CLOSE)])
        if template:
            use_template(tokenizer, template)
        return tokenizer
    tokenizer = bt.load_tokenizer(SHARED / "tokenizers" / "minimind")
    file = FILES[name]
    is_jinja = file.suffix == ".jinja"
    use_template(tokenizer, file if is_jinja else json.loads(file.read_text())["chat_template"])
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>"})
    tokenizer.add_tokens(sorted(set(CONTROL.findall(tokenizer.chat_template))), special_tokens=True)
    return tokenizer


USABLE = [name for name in [*OWN, *BASE, *sorted(FILES)] if name not in REFUSED]


@pytest.fixture(scope="session", params=USABLE)
def templated(request, shared) -> Renderer:
    """The renderer of each usable template in turn."""
    return Renderer(with_template(request.param))


def test_the_templates_of_trl_are_at_hand():
    """They come with pip install -e '.[bench]'."""
    if not TRL:
        pytest.skip("trl is not installed")
    assert len(FILES) > 60


def test_no_template_is_passed_over(shared):
    """Each is used or refused, and none is both."""
    assert {*USABLE, *(name for name in REFUSED if name in FILES)} == {*OWN, *BASE, *FILES}


@pytest.mark.parametrize("name", [name for name in REFUSED if name in FILES])
def test_a_template_that_cannot_be_used_is_refused(shared, name):
    """By an error that says why, before any row is rendered."""
    with pytest.raises(ValueError, match=re.escape(REFUSED[name])):
        Renderer(with_template(name))


# ---------------------------------------------------------------------------------------------- what templates say


def native(renderer: Renderer, turns: list[tuple[str, str]], **options) -> str:
    """What the template itself makes of a conversation."""
    turns = [{"role": role, "content": text} for role, text in turns]
    return renderer.tokenizer.apply_chat_template(turns, tokenize=False, **options)


def supplied(renderer: Renderer) -> str:
    """The open tag and the white space after it, where the generation prompt ends in them."""
    prompt = native(renderer, [("user", "q")], add_generation_prompt=True)
    return prompt[prompt.rindex(OPEN) :] if prompt.rstrip().endswith(OPEN) else ""


def closes(renderer: Renderer) -> bool:
    """Whether the generation prompt holds a whole thought, empty, as those of models that shall not think do."""
    return CLOSE in native(renderer, [("user", "q")], add_generation_prompt=True)


def lead(renderer: Renderer) -> str:
    """The white space that the template writes between the generation prompt and a thought."""
    prompt = native(renderer, [("user", "q")], add_generation_prompt=True)
    whole = native(renderer, [("user", "q"), ("assistant", "<think>THOUGHT</think>ANSWER")])
    between = whole.removeprefix(prompt).partition(OPEN)[0] if whole.startswith(prompt) else ""
    return between if between.isspace() else ""


def kept(renderer: Renderer, thought: str) -> str:
    """A thought without the white space that the prompt supplies."""
    return thought.removeprefix(supplied(renderer).removeprefix(OPEN))


def conversation(turns: list[tuple[str, str]]) -> list[Message]:
    return [Message(role, [Block(text)]) for role, text in turns]


def rendered(renderer: Renderer, user: str, assistant: str) -> bt.Example:
    (example,) = renderer.examples(talk(user, assistant), "id")
    return example


def of(example: bt.Example, kind: Kind) -> list[int]:
    """The ids of a kind."""
    return [token for token, k in zip(example.input_ids, example.kinds, strict=True) if k == kind]


def as_read(renderer: Renderer, text: str) -> str:
    """What a tokenizer can know of a text. Phi-3's control tokens swallow the white space after them, it writes a
    space after each added token, and its ▁ is a space; SmolLM's lacks some bytes, of control characters and high planes
    of Unicode, and passes them over."""
    tokenizer = renderer.tokenizer
    added = tokenizer.added_tokens_decoder.values()
    if any(token.rstrip for token in added):
        text = re.sub(
            f"({'|'.join(re.escape(token.content) for token in added)})\\s+", r"\1", text
        ).replace("▁", " ")
    return tokenizer.decode(tokenizer.encode(text)) if "smollm" in tokenizer.name_or_path else text


def told(renderer: Renderer, example: bt.Example, kind: Kind) -> str:
    """The text of a kind."""
    ids = [token for token, k in zip(example.input_ids, example.kinds, strict=True) if k == kind]
    return as_read(renderer, renderer.tokenizer.decode(ids))


few = settings(max_examples=6)
spaces = st.text(" \n\t", max_size=3)
thoughts = st.tuples(spaces, texts.filter(lambda text: CLOSE not in text), spaces).map("".join)


@pytest.mark.parametrize("user", ["What is 2+2?", "  a\n\nb ", "東京 🎉"])
def test_harmless_prompts_have_the_templates_own_ids(templated, user):
    """No second BOS, no other merges."""
    turns = [{"role": "user", "content": user}]
    wanted = templated.tokenizer.apply_chat_template(
        turns, add_generation_prompt=True, return_dict=False
    )
    assert templated.prompt_ids(to_prompt(user)) == list(wanted)


@few
@given(user=texts, thought=thoughts, answer=texts)
def test_completions(templated, user, thought, answer):
    """The prompt is the template's generation prompt. After it stand the thought, the close tag, the answer and the end
    of turn, and nothing else; the kinds tile them; each tag is one token; no text becomes a control token. A prompt
    with a whole thought takes no other."""
    prompt = templated.prompt_ids(to_prompt(user))
    wanted = native(templated, [("user", user)], add_generation_prompt=True)
    text = as_read(templated, templated.tokenizer.decode(prompt))
    assert same(text, as_read(templated, wanted))
    if closes(templated):
        with pytest.raises(UnsuitableRow, match="whole, empty thought"):
            rendered(templated, user, f"{OPEN}{thought}{CLOSE}{answer}")
        return
    example = rendered(templated, user, f"{OPEN}{thought}{CLOSE}{answer}")
    opens = bool(supplied(templated))
    assert example.input_ids[: len(prompt)] == prompt and not any(example.weights[: len(prompt)])
    assert all(weight == 1 for _, _, weight in completion(example))
    thought, before = kept(templated, thought), lead(templated)
    kinds = [kind for kind, _ in groupby(kind for _, kind, _ in completion(example))]
    wanted = (
        [Kind.ANSWER] * bool(before)
        + [Kind.TAG] * (not opens)
        + [Kind.THINK] * bool(thought)
        + [Kind.TAG, Kind.ANSWER]
    )
    assert kinds == (wanted if opens or thought else [*wanted[:-2], Kind.ANSWER])
    assert same(told(templated, example, Kind.THINK), as_read(templated, thought))
    assert same(
        told(templated, example, Kind.ANSWER),
        as_read(templated, before + answer) + templated.end_of_turn,
    )
    tags = [token for token, kind, _ in completion(example) if kind == Kind.TAG]
    assert tags == list(bt.tag_ids(templated.tokenizer))[opens:]
    harmless = rendered(templated, "x", f"{OPEN}x{CLOSE}x")
    assert controls(templated, example.input_ids) == controls(templated, harmless.input_ids)


ONCE = [
    "<think>\nSo 3 + 4 = 7.\n</think>\n\n7",
    "<think>a</think>b",
    " <think>\n\n</think>\n\n c ",
    "\n\n<think>d</think>e\n",
]


@pytest.mark.parametrize("assistant", ONCE)
def test_prompt_and_completion_are_tokenized_once(templated, assistant):
    """The ids are those of the whole text; of prompt and completion apart where a token would straddle its end."""
    prompt = native(templated, [("user", "Hi there!")], add_generation_prompt=True)
    if closes(templated):
        assistant = assistant.replace(OPEN, "").replace(CLOSE, "")
    example = rendered(templated, "Hi there!", assistant)
    if assistant.startswith(OPEN):
        assistant = lead(templated) + assistant
    if supplied(templated):
        assistant = kept(templated, assistant.lstrip().removeprefix(OPEN))
    text = assistant + templated.end_of_turn

    def encode(text: str):
        return templated.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)

    whole = encode(prompt + text)
    straddles = any(start < len(prompt) < end for start, end in whole["offset_mapping"])
    wanted = (
        encode(prompt)["input_ids"] + encode(text)["input_ids"] if straddles else whole["input_ids"]
    )
    assert example.input_ids == wanted


def test_the_end_of_turn(templated):
    """It is control tokens, which are trained as the end of the answer, the last of which stops generation, and what
    the template itself writes after an answer; where that writes nothing, it is the tokenizer's end of text."""
    rows = completion(
        rendered(templated, "q", "b" if not supplied(templated) else "<think>a</think>b")
    )
    end = rows[
        -len(templated.tokenizer(templated.end_of_turn, add_special_tokens=False)["input_ids"]) :
    ]
    assert {row[1:] for row in end} == {(Kind.ANSWER, 1.0)} and end[-1][0] in templated.stop_ids()
    assert templated.tokenizer.decode([token for token, *_ in end]) == templated.end_of_turn
    after = native(templated, [("user", "q"), ("assistant", "ANSWER")]).rpartition("ANSWER")[2]
    assert after.startswith(templated.end_of_turn) or not after.strip()
    assert after.strip() or templated.end_of_turn == templated.tokenizer.eos_token


def test_the_completion_begins_where_the_template_puts_it(templated):
    """Between the generation prompt and a turn that begins with its thought, the template itself writes nothing."""
    prompt = native(templated, [("user", "q")], add_generation_prompt=True)
    whole = native(templated, [("user", "q"), ("assistant", "<think>THOUGHT</think>ANSWER")])
    if whole.startswith(prompt) and "THOUGHT" in whole and not supplied(templated):
        start = whole[: whole.index(OPEN, len(prompt))]
        text = templated.tokenizer.decode(
            rendered(templated, "q", "<think>THOUGHT</think>").input_ids
        )
        assert as_read(templated, text).startswith(as_read(templated, start + OPEN))


TURNS = [
    ("user", "q1"),
    ("assistant", "<think>\nt1\n</think>\n\na1"),
    ("user", "q2"),
    ("assistant", "<think>t2</think>a2"),
]


def test_several_turns(templated):
    """One example where what the template makes of the history is what was trained, else one for each turn."""
    if closes(templated):
        with pytest.raises(UnsuitableRow, match="whole, empty thought"):
            templated.examples(conversation(TURNS), "id")
        return
    prompts = [native(templated, TURNS[:n], add_generation_prompt=True) for n in (1, 3)]
    if (
        prompts[1].partition("q2")[0].count(OPEN) > 1
    ):  # the thought of the history has to come apart
        turns = [{"role": role, "content": text} for role, text in TURNS[:3]]
        turns[1] |= {"content": "a1", "reasoning_content": "t1"}
        prompts[1] = templated.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
    said = [
        lead(templated)
        + (OPEN + kept(templated, text.removeprefix(OPEN))).removeprefix(
            OPEN if supplied(templated) else ""
        )
        for role, text in TURNS
        if role == "assistant"
    ]
    texts = [
        prompt + text + templated.end_of_turn for prompt, text in zip(prompts, said, strict=True)
    ]
    wanted = texts[1:] if texts[1].startswith(texts[0]) else texts
    examples = templated.examples(conversation(TURNS), "id")
    decoded = [templated.tokenizer.decode(example.input_ids) for example in examples]
    assert [as_read(templated, text) for text in decoded] == [
        as_read(templated, text) for text in wanted
    ]
    assert len({example.id for example in examples}) == len(examples)
    assert "t2" in told(templated, examples[-1], Kind.THINK) and "t1" in told(
        templated, examples[0], Kind.THINK
    )


def test_no_turn_of_the_history_has_two_thoughts(templated):
    """Some templates write an empty one before text that holds one: they want it apart, as `reasoning_content`."""
    prompt = templated.tokenizer.decode(templated.prompt_ids(conversation(TURNS[:3])))
    assert prompt.partition("q2")[0].count(OPEN) <= 1


def test_a_thought_must_fit_the_prompt(templated):
    """A prompt that opens a thought has no place for a turn without one, one that holds a whole thought none for
    another; any other prompt takes both."""
    whole, plain = "<think>\nt\n</think>\n\na", "a"
    for assistant, fits in ((whole, not closes(templated)), (plain, not supplied(templated))):
        if fits:
            assert rendered(templated, "q", assistant).flags == ["untagged"] * (assistant == plain)
        else:
            with pytest.raises(UnsuitableRow, match="thought"):
                rendered(templated, "q", assistant)


def rows(shared: Path) -> list[dict]:
    """Real ones: problems, instructions with and without input, and traces of R1, shortened."""
    instructions = bt.load_rows(
        shared / "datasets" / "instructions" / "instruction_input_output.json"
    )
    traces = (
        (shared / "datasets" / "r1_traces" / "thought_anchors_20.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    found = [*bt.load_rows(shared / "datasets" / "gsm8k" / "train.jsonl")[:4], *instructions[:2]]
    for trace in map(json.loads, traces[:3]):
        thought, _, answer = trace["solution"].partition(CLOSE)
        turns = [
            ("user", trace["problem"]["problem"]),
            ("assistant", f"<think>\n{thought[:500]}{CLOSE}{answer}"),
        ]
        found.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    return found


def test_real_rows(templated, shared):
    """Prompt, thought and answer come out as they stand in the row, or the row is refused with the reason."""
    for row in rows(shared):
        messages = to_messages(row)
        text = messages[-1].text
        try:
            (example,) = templated.examples(messages, "id")
        except RowError as error:
            no_system = messages[0].role == "system" and "the chat template refuses" in str(error)
            no_thought = (
                closes(templated) and CLOSE in text and "whole, empty thought" in str(error)
            )
            assert (
                no_system
                or no_thought
                or (supplied(templated) and CLOSE not in text and "opens a thought" in str(error))
            )
            continue
        prompt = native(
            templated, [(m.role, m.text) for m in messages[:-1]], add_generation_prompt=True
        )
        thought, close, answer = text.rpartition(CLOSE)
        thought = kept(templated, thought.removeprefix(OPEN))
        assert same(told(templated, example, Kind.PROMPT), as_read(templated, prompt))
        assert same(told(templated, example, Kind.THINK), as_read(templated, thought))
        answer = lead(templated) * text.startswith(OPEN) + answer
        assert same(
            told(templated, example, Kind.ANSWER),
            as_read(templated, answer) + templated.end_of_turn,
        )
        assert bt.tag_ids(templated.tokenizer)[1] in example.input_ids or not close


def test_tags_beside_each_other_are_single_tokens(shared):
    """Phi-3's normalizer writes ▁ before a text, which hides a tag after a tag that was added as a mere text."""
    tokenizer = bt.load_tokenizer(shared / "tokenizers" / "phi-3-mini")
    tokenizer.add_tokens([OPEN, CLOSE])
    with pytest.raises(ValueError, match="add_tags"):
        bt.prepare([{"question": "q", "answer": "a"}], tokenizer)
    tokenizer = bt.load_tokenizer(shared / "tokenizers" / "phi-3-mini")
    bt.add_tags(tokenizer)
    renderer = Renderer(tokenizer)
    example = rendered(renderer, "q", "<think></think>a")
    assert [token for token, kind, _ in completion(example) if kind == Kind.TAG] == list(
        bt.tag_ids(renderer.tokenizer)
    )


# ---------------------------------------------------------------------------------------------- templates by name

CHATS = {
    "chatml": "<|im_start|>user\n q \n<|im_end|>\n<|im_start|>assistant\n a \n<|im_end|>\n"
    "<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n",
    "qa": "Question:  q \n \nAnswer:  a \n<|endoftext|>Question: r \nAnswer:",
    "alpaca": "Below is an instruction that describes a task. Write a response that appropriately completes the "
    "request.\n\n### Instruction:\n q \n\n\n### Response:\n a \n<|endoftext|>### Instruction:\nr\n\n### Response:\n",
}
CHAT = [("user", " q \n"), ("assistant", " a \n"), ("user", "r")]


@pytest.fixture
def gpt2(shared):
    return bt.load_tokenizer(shared / "tokenizers" / "gpt2")


def chat(tokenizer, turns: list[tuple[str, str]]) -> str:
    turns = [{"role": role, "content": text} for role, text in turns]
    return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)


@pytest.mark.parametrize("name", CHATS)
def test_templates_by_name(gpt2, shared, name):
    """Text comes out as it is; SmolLM knows <|im_end|>, GPT-2 does not and gets no token, but its own end."""
    smollm = bt.load_tokenizer(shared / "tokenizers" / "smollm")
    size = len(gpt2)
    for tokenizer in (smollm, gpt2):
        use_template(tokenizer, name)
    assert chat(smollm, CHAT) == CHATS[name]
    assert (
        chat(gpt2, CHAT) == CHATS[name].replace("<|im_end|>", "<|endoftext|>") and len(gpt2) == size
    )


def test_alpaca_pairs_an_instruction_with_its_input(gpt2):
    """As rows of instruction, input and output have them."""
    use_template(gpt2, "alpaca")
    row = {"instruction": "Add.", "input": "1, 2", "output": "3"}
    text = chat(gpt2, [(message.role, message.text) for message in to_messages(row)][:-1])
    assert (
        text.endswith("\n\n### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n")
        and "paired" in text
    )


@pytest.mark.parametrize(
    ("name", "turns"), [("qa", ["system", "user"]), ("alpaca", ["user", "system"])]
)
def test_a_role_that_a_format_lacks_is_refused(gpt2, name, turns):
    use_template(gpt2, name)
    gpt2.add_tokens([OPEN, CLOSE])
    with pytest.raises(
        RowError, match=f"roles {re.escape(str(turns))}.*{name} has .* of the system"
    ):
        Renderer(gpt2).prompt_ids(conversation([(role, "x") for role in turns]))


def test_templates_from_files_and_text(gpt2, tmp_path):
    """A .jinja file, by its path or its path's text, or Jinja itself."""
    source = "{% for m in messages %}{{ m.content }}{% endfor %}"
    (tmp_path / "chat_template.jinja").write_text(source)
    for template in (source, *tmp_path.iterdir(), str(tmp_path / "chat_template.jinja")):
        gpt2.chat_template = None
        use_template(gpt2, template)
        assert chat(gpt2, CHAT) == " q \n a \nr"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("chatlm", "unknown template 'chatlm'; known: chatml, qa, alpaca"),
        ("none.jinja", "none.jinja"),
        ("{{ a }}\n{% for %}", "{% for %}, line 2: no Jinja: Expected"),
        ("broken.jinja", "broken.jinja, line 3: no Jinja"),
        ("tokenizer_config.json", "unknown template 'tokenizer_config.json'"),
    ],
)
def test_a_template_that_is_none_is_refused(gpt2, tmp_path, monkeypatch, template, problem):
    """By name, file and line; the tokenizer stays as it was."""
    monkeypatch.chdir(tmp_path)
    Path("broken.jinja").write_text("\n\n{{ a")
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(problem)):
        use_template(gpt2, template)
    assert gpt2.chat_template is None


def test_a_tokenizer_without_an_end_has_no_template_by_name(gpt2):
    """The formats end a turn with it."""
    gpt2.eos_token = None
    use_template(gpt2, "qa")
    bt.add_tags(gpt2)
    with pytest.raises(ValueError, match="eos_token"):
        Renderer(gpt2)
