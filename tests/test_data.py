"""Rows from files and generated sets, what `prepare` keeps, drops and reports, and the batches."""

import json
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import btsft_nb as bt
from btsft_nb import Collator, Kind, RowError, Rows, load_rows, prepare
from btsft_nb.tiny import SIZES, WAYS, rows, way_of


def talk(assistant: object, **fields) -> dict:
    return {
        "messages": [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": assistant},
        ],
        **fields,
    }


# ---------------------------------------------------------------------------------------------- generated sets


@pytest.fixture(scope="module")
def tiny() -> dict[str, Rows]:
    return {name: load_rows(f"tiny/{name}") for name in SIZES}


def thought_of(row: dict) -> str:
    """The thought in a generated row, tagged or not."""
    return (
        row["messages"][1]["content"]
        .replace("<think>", "")
        .replace("</think>", "")
        .partition("\n\n")[0]
    )


def problem(row: dict) -> tuple:
    """Numbers and result of a sum or difference; the whole question of a product."""
    question = row["messages"][0]["content"]
    a, b = map(int, re.findall(r"\d+", question))
    return (question,) if a * b == int(row["answer"]) else (a, b, row["answer"])


def test_tiny_sets_have_their_sizes_and_distinct_ids(tiny):
    """Sizes as documented; the id keys the blur."""
    for name, size in {"pretrain": 64_000, "teacher": 1_000, "messy": 1_000, "test": 200}.items():
        assert len(tiny[name]) == size == len({row["id"] for row in tiny[name]})


@pytest.mark.parametrize("name", SIZES)
def test_tiny_rows_are_reproducible(name):
    """Equal for a seed, a longer set begins with the shorter, another seed gives other rows."""
    assert rows(name, 50) == rows(name, 50) == rows(name, 60)[:50]
    assert rows(name, 50, seed=1) != rows(name, 50)


def test_test_problems_occur_in_no_training_set(tiny):
    """Sums and differences by their numbers, products by their question."""
    tested = {problem(row) for row in tiny["test"]}
    for name in ("pretrain", "teacher", "messy"):
        assert not tested & {problem(row) for row in tiny[name]}
    assert len(tested) > 50


def test_test_rows_have_no_answer_turn(tiny):
    """They are prompts, with the reference beside them."""
    assert all(
        [turn["role"] for turn in row["messages"]] == ["user"] and row["answer"]
        for row in tiny["test"]
    )


def test_four_of_ten_messy_rows_lack_the_tags(tiny):
    """Exactly, and in every ten; a row has both tags or none. The other sets have them throughout."""
    tagged = [("<think>" in row["messages"][1]["content"]) for row in tiny["messy"]]
    assert all(sum(tagged[i : i + 10]) == 6 for i in range(0, 1000, 10))
    for name in ("pretrain", "teacher", "messy"):
        for row in tiny[name]:
            content = row["messages"][1]["content"]
            assert (content.count("<think>"), content.count("</think>")) in (
                [(1, 1), (0, 0)] if name == "messy" else [(1, 1)]
            )


@pytest.mark.parametrize("name", ["pretrain", "messy"])
def test_every_way_of_thinking_is_well_represented(tiny, name):
    """At least a tenth of each; the teacher has one way only."""
    ways = [row["way"] for row in tiny[name]]
    assert set(ways) == set(WAYS) and min(map(ways.count, WAYS)) >= len(ways) / 10
    assert len({row["way"] for row in tiny["teacher"]}) == 1


def test_the_way_of_every_generated_thought_is_recognised(tiny):
    """And of nothing else."""
    for name in ("pretrain", "teacher", "messy"):
        assert all(way_of(thought_of(row)) == row["way"] for row in tiny[name])
    assert (
        way_of("") is None
        and way_of("The answer is 3.") is None
        and way_of("  \nCount: 1") == "count"
    )


def test_generated_thoughts_calculate_correctly(tiny):
    """Each equation in a thought holds, and each answer is the question's."""
    operations = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__, "/": int.__floordiv__}
    for row in tiny["pretrain"][:4000]:
        for a, sign, b, c in re.findall(r"(\d+)([-+*/])(\d+)=(\d+)", thought_of(row)):
            assert operations[sign](int(a), int(b)) == int(c), row
        numbers = [int(number) for number in re.findall(r"\d+", row["messages"][0]["content"])]
        assert int(row["answer"]) in [operation(*numbers) for operation in operations.values()]
        assert row["messages"][1]["content"].endswith(f"The answer is {row['answer']}.")


# ---------------------------------------------------------------------------------------------- prepare


def test_prepare_keeps_what_it_says(tiny_tokenizer, capsys):
    """Columns, equal lengths, ids from the rows, and the report printed."""
    examples = prepare(load_rows("tiny/messy"), tiny_tokenizer)
    report = examples.report
    assert set(examples.column_names) >= {"id", "input_ids", "weights", "kinds"}
    lengths = [len(ids) for ids in examples["input_ids"]]
    assert lengths == [len(x) for x in examples["weights"]] == [len(x) for x in examples["kinds"]]
    untagged = [
        i
        for i, row in enumerate(load_rows("tiny/messy"))
        if "<think>" not in row["messages"][1]["content"]
    ]
    assert (report.rows, report.kept, report.dropped, report.flagged) == (
        1000,
        1000,
        {},
        {"untagged": untagged},
    )
    spread = report.lengths["sequence"]
    assert (spread["shortest"], spread["longest"]) == (min(lengths), max(lengths))
    assert sum(report.tokens.values()) == sum(lengths)
    assert report.tokens["tag"] == 1200
    assert report.supervised == sum(w != 0 for weights in examples["weights"] for w in weights)
    assert examples["id"][7] == "tiny/messy/7"
    printed = capsys.readouterr().out
    assert (
        str(report) in printed
        and "1,000 rows -> 1,000 examples" in printed
        and "untagged" in printed
    )


@pytest.mark.parametrize("rank", [0, 150, 285])
def test_the_report_adds_up(tiny_tokenizer, rank):
    """Kept and dropped are all examples; nothing longer than the limit is kept, nothing shorter dropped."""
    messy = load_rows("tiny/messy")[:300]
    lengths = [len(ids) for ids in prepare(messy, tiny_tokenizer)["input_ids"]]
    every = sorted(lengths)
    max_length = every[rank]
    fit = [length for length in every if length <= max_length]
    rows = [i for i, length in enumerate(lengths) if length > max_length]
    report = prepare(messy, tiny_tokenizer, max_length).report
    assert (report.kept, report.lengths["sequence"]["longest"]) == (len(fit), max(fit))
    assert report.dropped == {f"longer than max_length={max_length}": rows}


def test_the_limit_itself_is_kept(tiny_tokenizer):
    """`max_length` is how long an example may be."""
    length = len(prepare([talk("ok")], tiny_tokenizer)["input_ids"][0])
    assert len(prepare([talk("ok")], tiny_tokenizer, length)) == 1
    with pytest.raises(ValueError):
        prepare([talk("ok")], tiny_tokenizer, length - 1)


def test_unweighted_examples_are_dropped_and_counted(tiny_tokenizer):
    """Nothing of them would be trained."""
    silent = talk([{"text": "ok", "weight": 0}])
    report = prepare([silent, talk("ok"), silent], tiny_tokenizer).report
    assert (report.rows, report.kept, report.dropped) == (3, 1, {"every weight is 0": [0, 2]})


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            [talk("a long answer")],
            ["rows", "nothing left", "1 (rows 0): longer than max_length=4", "raise max_length"],
        ),
        ([talk([{"text": "ok", "weight": 0}])], ["nothing left", "longer than"]),
        ([], ["no rows"]),
    ],
)
def test_nothing_left_says_why(tiny_tokenizer, given, words):
    """The reasons, and what to do."""
    with pytest.raises(ValueError) as error:
        prepare(given, tiny_tokenizer, max_length=4)
    for word in words:
        assert word in str(error.value)


def test_a_malformed_row_is_named_by_file_row_and_field(tiny_tokenizer, tmp_path):
    """In the middle of a file, counted from 0 as Python counts."""
    path = tmp_path / "talks.jsonl"
    path.write_text("\n".join(json.dumps(talk(text)) for text in ("fine", "fine", 5, "fine")))
    with pytest.raises(
        RowError, match=re.escape(f"{path}, row 2: field messages[1].content: expected text, got")
    ):
        prepare(load_rows(path), tiny_tokenizer)


def test_a_row_that_the_renderer_refuses_is_named(tiny_tokenizer):
    """Rows that no file stands behind are just rows."""
    with pytest.raises(RowError, match=r"rows, row 1: .*U\+FDD0"):
        prepare([talk("fine"), talk("\ufdd0")], tiny_tokenizer)


def test_ids_fall_back_to_source_and_row(tiny_tokenizer):
    """Distinct, so that examples differ in their blur."""
    examples = prepare(
        Rows([talk("a"), talk("b", id="mine"), talk("c", id=7)], "here"), tiny_tokenizer
    )
    assert list(examples["id"]) == ["here#0", "mine", "7"]


# ---------------------------------------------------------------------------------------------- batches

THINK, TAG, ANSWER, PROMPT = (
    int(kind) for kind in (Kind.THINK, Kind.TAG, Kind.ANSWER, Kind.PROMPT)
)
tokens = st.tuples(
    st.integers(0, 9),
    st.sampled_from([0.0, 1.0, -1.0, 0.5]),
    st.sampled_from([PROMPT, TAG, THINK, ANSWER]),
)


@given(st.lists(st.lists(tokens, min_size=1, max_size=9), min_size=1, max_size=5))
def test_a_batch_is_its_examples_padded_on_the_right(rows):
    """Weights, kinds and labels stay aligned to their tokens; padding is prompt that weighs nothing."""
    columns = ("input_ids", "weights", "kinds")
    rows = [
        [(token, weight if t else 0.0, kind) for t, (token, weight, kind) in enumerate(row)]
        for row in rows
    ]
    examples = [
        {"id": str(i)} | dict(zip(columns, zip(*row, strict=True), strict=True))
        for i, row in enumerate(rows)
    ]
    batch = Collator(pad_token_id=9)(examples)
    shape = (len(rows), max(map(len, rows)))
    assert all(batch[name].shape == shape for name in (*columns, "labels", "attention_mask"))
    for i, row in enumerate(rows):
        n = len(row)
        for name in columns:
            assert batch[name][i, :n].tolist() == list(examples[i][name])
        assert batch["attention_mask"][i].tolist() == [1] * n + [0] * (shape[1] - n)
        assert batch["labels"][i, :n].tolist() == [
            token if weight else -100 for token, weight, _ in row
        ]
        assert set(batch["input_ids"][i, n:].tolist()) <= {9} and set(
            batch["labels"][i, n:].tolist()
        ) <= {-100}
        assert not batch["weights"][i, n:].any() and (batch["kinds"][i, n:] == Kind.PROMPT).all()
        assert (batch["sequence"][i] == i).all()


@given(st.lists(st.lists(tokens, min_size=1, max_size=9), min_size=1, max_size=5))
def test_a_padding_free_batch_is_its_examples_end_to_end(rows):
    """Cut at the starts of the positions, it gives back what the padded batch holds; no mask, no padding."""
    columns = ("input_ids", "weights", "kinds")
    examples = [
        {"id": str(i)} | dict(zip(columns, zip(*row, strict=True), strict=True))
        for i, row in enumerate(rows)
    ]
    padded, flat = Collator(9)(examples), Collator(9, padding_free=True)(examples)
    assert set(padded) - set(flat) == {"attention_mask"} and set(flat) - set(padded) == {
        "position_ids"
    }
    assert flat["keys"].tolist() == padded["keys"].tolist()
    assert flat["position_ids"].tolist() == [[t for row in rows for t in range(len(row))]]
    real = padded["attention_mask"].bool()
    for name in (*columns, "labels", "sequence"):
        assert (
            flat[name].shape == (1, sum(map(len, rows))) and flat[name].dtype == padded[name].dtype
        )
        assert flat[name][0].tolist() == padded[name][real].tolist()


def test_the_first_token_of_an_example_is_never_trained():
    """Nothing predicts it; in a row of several examples the end of another one would."""
    example = {"id": "a", "input_ids": [5, 6], "weights": [1.0, 1.0], "kinds": [THINK, THINK]}
    for padding_free in (False, True):
        weights = Collator(0, padding_free)([example, example])["weights"]
        assert weights.flatten().tolist() == [0, 1, 0, 1]


def test_keys_do_not_depend_on_the_batch():
    """The key of an example is that of its id, wherever it stands."""
    example = {"input_ids": [1], "weights": [1.0], "kinds": [THINK]}
    batch = Collator(0)([{**example, "id": name} for name in ("a", "b", "a")])
    assert batch["keys"].tolist() == [bt.example_key("a"), bt.example_key("b"), bt.example_key("a")]
    assert batch["keys"].dtype == torch.int64


def test_the_end_of_turn_is_trained_where_it_pads_too(shared):
    """pad == eos: R1-Distill and GPT-2 pad with their end token; only the one of the turn is supervised."""
    tokenizer = bt.load_tokenizer(shared / "tokenizers" / "gpt2")
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% endfor %}{{ '\nA: ' if add_generation_prompt }}"
    )
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    examples = prepare(
        [talk("<think>a</think>b"), talk("<think>a much longer thought</think>b")], tokenizer
    )
    batch = Collator(tokenizer.pad_token_id)(list(examples))
    length = len(examples[0]["input_ids"])
    assert length < batch["labels"].shape[1]
    assert (
        batch["labels"][0, length - 1] == tokenizer.eos_token_id
        and batch["weights"][0, length - 1] == 1
    )
    assert (batch["labels"][0, length:] == -100).all()


def test_r1_pads_with_its_end_of_turn(r1):
    """The same with a real reasoning tokenizer."""
    assert r1.pad_token_id == r1.eos_token_id
    example = prepare([talk("<think>a</think>b")], r1)[0]
    assert example["input_ids"][-1] == r1.pad_token_id and example["weights"][-1] == 1
    assert Collator(r1.pad_token_id)([example])["labels"][0, -1] == r1.eos_token_id
