"""Multiple choice by likelihood: the figures of a plain softmax, what is read, what is refused."""

import copy
import json

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model

import btsft_nb as bt
from btsft_nb.evaluation.multiple_choice import render_questions

CAPITAL = {
    "question": "The capital of Côte d'Ivoire?",
    "choices": ["Yamoussoukro", "Zürich", "Ōsaka"],
    "answer": 0,
}
ICE = {"question": "What is ice?", "choices": ["water", "stone"], "answer": "A"}


@pytest.fixture(scope="module")
def tiny():
    return bt.load_model("tiny")


@pytest.fixture(scope="module")
def problems() -> list[dict]:
    """20 word problems with the teacher's thought, its answer second, and three wrong numbers."""
    found = []
    for row in bt.load_rows("tiny/teacher")[:20]:
        asked, said = (turn["content"] for turn in row["messages"])
        thought = said.removeprefix("<think>").partition("</think>")[0]
        numbers = [int(row["answer"]) + difference for difference in (1, 0, 20, 100)]
        options = [f"The answer is {number}." for number in numbers]
        found.append({"question": asked, "thought": thought, "choices": options, "answer": 1})
    return found


def plain(model, tokenizer, question: dict) -> list[float]:
    """The log-probability of each option after prompt and thought, by softmax in float64, one by one, no padding."""
    turn = {"role": "user", "content": question["question"]}
    before = tokenizer.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
    before += (
        f"<think>\n{question['thought'].strip()}\n</think>\n\n" if "thought" in question else ""
    )
    n, found = len(tokenizer.encode(before, add_special_tokens=False)), []
    for option in question["choices"]:
        ids = torch.tensor([tokenizer.encode(before + option, add_special_tokens=False)])
        with torch.no_grad():
            log_probs = model(ids).logits[0, -ids.shape[1] :].double().log_softmax(-1)
        found.append(sum(log_probs[at - 1, ids[0, at]].item() for at in range(n, ids.shape[1])))
    return found


def test_log_probs_are_those_of_the_options_alone(tiny, problems):
    """Neither prompt, thought nor end of turn counts; padding changes nothing."""
    questions = [*problems[:3], CAPITAL]
    records = bt.choices(*tiny, questions)
    for question, record in zip(questions, records, strict=True):
        assert record["log_probs"] == pytest.approx(plain(*tiny, question), abs=1e-3)


def test_logits_are_made_only_where_an_option_has_a_token(tiny, problems):
    """Of a large vocabulary those of a whole batch take gigabytes. A hook has the head called row by row."""
    rows = []
    hook = (
        tiny[0]
        .get_output_embeddings()
        .register_forward_hook(lambda head, arguments, out: rows.append(len(out)))
    )
    bt.choices(*tiny, problems[:1])
    hook.remove()
    (question,) = render_questions(tiny[1], problems[:1])
    tags = [example["tags"][0] for example in question.examples]
    tokens = [tag["stop"] - tag["start"] for tag in tags]
    probe = 4  # tokens by which the form of the head is found
    assert sum(rows) <= sum(tokens) + 2 * probe


def test_virtual_tokens_are_in_front(tiny, problems):
    """PEFT's virtual tokens before the first."""
    virtual = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    model = get_peft_model(copy.deepcopy(tiny[0]), virtual).eval()
    questions = [*problems[:2], CAPITAL]
    for question, record in zip(questions, bt.choices(model, tiny[1], questions), strict=True):
        assert record["log_probs"] == pytest.approx(plain(model, tiny[1], question), abs=1e-3)


def test_a_model_that_has_diverged_is_named(tiny):
    model = copy.deepcopy(tiny[0]).train()
    model.get_output_embeddings().weight.data.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="are NaN: the model has diverged"):
        bt.choices(model, tiny[1], [ICE])


def test_what_fails_leaves_the_mode(tiny):
    model = copy.deepcopy(tiny[0]).train()
    model.get_output_embeddings().register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bt.choices(model, tiny[1], [ICE])
    assert model.training


def test_a_model_that_has_thought_chooses_right(tiny, problems):
    records = bt.choices(*tiny, problems)
    assert sum(record["correct_raw"] for record in records) >= 19
    assert [record["raw"] == record["answer"] for record in records] == [
        record["correct_raw"] for record in records
    ]
    wrong = bt.choices(*tiny, [question | {"answer": 0} for question in problems])
    assert sum(record["correct_raw"] for record in wrong) <= 1


def test_the_longer_option_is_chosen_per_byte_only(tiny):
    """Of two options where the sum prefers one and the sum per byte the other; bytes are those of UTF-8."""
    (record,) = bt.choices(*tiny, [CAPITAL])
    assert record["bytes"] == [12, 7, 6]
    assert record["raw"] == max(range(3), key=lambda i: record["log_probs"][i])
    per_byte = [log_p / n for log_p, n in zip(record["log_probs"], record["bytes"], strict=True)]
    assert record["normalised"] == max(range(3), key=lambda i: per_byte[i])
    (record,) = bt.choices(
        *tiny, [{"question": "Say it.", "choices": ["The", "The answer is 57."], "answer": "B"}]
    )
    assert (record["raw"], record["normalised"]) == (0, 1)
    assert (record["correct_raw"], record["correct_normalised"]) == (False, True)


@pytest.mark.parametrize(
    ("options", "answer", "index"),
    [
        (["water", "stone"], 1, 1),
        (["water", "stone"], "B", 1),
        (["water", "stone"], "stone", 1),
        (["A", "B"], "B", 1),
        (["3", "1", "2"], "1", 1),
        (["3", "1", "2"], 1, 1),
    ],
)
def test_answers_are_read(tiny_tokenizer, options, answer, index):
    """As index, letter or text."""
    row = {"question": "?", "choices": options, "answer": answer}
    (question,) = render_questions(tiny_tokenizer, [row])
    assert question.record["answer"] == index and len(question.examples) == len(options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"question": None}, r"field question: expected text, got None"),
        ({"question": " "}, r"field question: expected some text"),
        ({"choices": "AB"}, r"field choices: expected 2 to 26 options, got 'AB'"),
        ({"choices": ["one"]}, r"field choices: expected 2 to 26"),
        ({"choices": ["one"] * 27}, r"field choices: expected 2 to 26"),
        ({"choices": ["a", 2, "c"]}, r"field choices\[1\]: expected text, got 2"),
        ({"choices": ["a", " ", "c"]}, r"field choices\[1\]: expected some text"),
        ({"choices": ["a", "b", "a"]}, r"field choices: two of them are the same"),
        ({"choices": ["a", "<think>b", "c"]}, r"field choices\[1\]: .*no think tags"),
        ({"thought": "so </think> there"}, r"field thought: .*no think tags"),
        ({"thought": 3}, r"field thought: expected text, got 3"),
        ({"thought": 0}, r"field thought: expected text, got 0"),
        ({"answer": 3}, r"field answer: expected the index, letter or text of one choice, got 3"),
        ({"answer": -1}, r"got -1"),
        ({"answer": True}, r"got True"),
        ({"answer": 1.0}, r"got 1.0"),
        ({"answer": "D"}, r"got 'D'"),
        ({"answer": None}, r"got None"),
        ({"choices": ["B", "A"], "answer": "A"}, r"of one choice, got 'A'"),
        (
            {"choices": {"text": ["a", "b"], "label": ["1", "2"]}},
            r"field choices: expected 2 to 26",
        ),
    ],
)
def test_malformed_questions_are_named(tiny_tokenizer, change, message):
    """With the row and the field, before anything is scored."""
    with pytest.raises(bt.RowError, match="questions, row 1: .*" + message):
        render_questions(tiny_tokenizer, [CAPITAL, CAPITAL | change])
    with pytest.raises(
        bt.RowError, match="quiz, row 0: expected question, choices and answer, got "
    ):
        render_questions(tiny_tokenizer, bt.Rows([[]], "quiz"))


def test_the_options_tokens_spell_the_option(tokenizer):
    """With the real templates, one of which opens a thought itself: no tag, no end of turn, nothing left out."""
    questions = [row | {"thought": "Let me see.\n"} for row in (CAPITAL, ICE)]
    for question in render_questions(tokenizer, questions):
        examples = question.examples
        for option, example in zip(question.record["choices"], examples, strict=True):
            (place,) = example["tags"]
            ids = example["input_ids"]
            assert tokenizer.decode(ids[place["start"] : place["stop"]]).strip() == option
            assert tokenizer.decode(ids[: place["start"]]).endswith("Let me see.\n</think>\n\n")
            assert tokenizer.decode(ids).count("<think>") == 1 and len(ids) > place["stop"]
        prompts = [example["input_ids"][: example["tags"][0]["start"]] for example in examples]
        assert all(prompt == prompts[0] for prompt in prompts)


def test_markers_in_an_option_and_an_empty_thought_stay(tiny_tokenizer):
    """As the record has them."""
    row = {"question": "?", "choices": ["<reasoning>x</reasoning>y", "[THINK]z"], "answer": 0}
    (question,) = render_questions(tiny_tokenizer, [row | {"thought": ""}])
    for option, example in zip(row["choices"], question.examples, strict=True):
        text = tiny_tokenizer.decode(example["input_ids"])
        assert f"<think>\n\n</think>\n\n{option}" in text


def test_a_template_that_opens_the_thought_needs_one(tiny):
    model, tokenizer = tiny
    opened = copy.deepcopy(tokenizer)
    opened.chat_template = tokenizer.chat_template.replace(
        "assistant\n' }}", "assistant\n<think>' }}"
    )
    with pytest.raises(bt.RowError, match=r"questions, row 1: .*opens a thought"):
        bt.choices(model, opened, [CAPITAL | {"thought": "Hm."}, CAPITAL])
    with_thought = [CAPITAL | {"thought": "Hm."}]
    (given,), (written,) = (
        bt.choices(model, opened, with_thought),
        bt.choices(model, tokenizer, with_thought),
    )
    assert given["log_probs"] == pytest.approx(written["log_probs"], abs=1e-3)


@pytest.mark.parametrize("training", [True, False])
def test_scoring_leaves_no_trace(tiny, training):
    """Neither in the model's mode nor in the random state; and its records are JSON."""
    model, tokenizer = copy.deepcopy(tiny[0]).train(training), tiny[1]
    before = torch.get_rng_state()
    records = bt.choices(model, tokenizer, [CAPITAL, ICE])
    assert model.training == training and torch.equal(torch.get_rng_state(), before)
    assert json.loads(json.dumps(records)) == records
    assert [record["question"] for record in records] == [CAPITAL["question"], ICE["question"]]
