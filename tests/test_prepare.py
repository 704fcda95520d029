"""What `prepare` does beyond one row: lengths, duplicates, processes, streams, the cache, as any data set."""

import datetime
import gc
import hashlib
import json
import os
import pickle
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from dataclasses import asdict

import dill
import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets, interleave_datasets, load_from_disk
from hypothesis import given
from hypothesis import strategies as st

import btsft_nb as bt
from btsft_nb import Kind, RowError, Rows, load_rows, prepare
from btsft_nb.data.fit import fit
from btsft_nb.data.preparation import CACHE_VERSION, _Maker

COLUMNS = ("id", "input_ids", "weights", "kinds", "tags", "flags")


def talk(assistant: object, user: str = "hi", **fields) -> dict:
    return {
        "messages": [
            {"role": "user", "content": user},
            {"role": "assistant", "content": assistant},
        ],
        **fields,
    }


def columns(examples) -> list:
    return [list(examples[name]) for name in COLUMNS]


# ---------------------------------------------------------------------------------------------- too long


def example(thought: int, answer: int = 3, prompt: int = 4) -> bt.Example:
    """Prompt, open tag, thought, close tag, answer; each token its own number."""
    kinds = (
        [Kind.PROMPT] * prompt
        + [Kind.TAG]
        + [Kind.THINK] * thought
        + [Kind.TAG]
        + [Kind.ANSWER] * answer
    )
    weights = [float(kind != Kind.PROMPT) for kind in kinds]
    tags = [{"tag": "thought", "start": prompt + 1, "stop": prompt + 1 + thought}]
    return bt.Example(
        "id", list(range(len(kinds))), weights, [int(kind) for kind in kinds], [], tags
    )


@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 40))
def test_a_shortened_thought_loses_its_tail_only(thought, answer, max_length):
    """Prompt, tags and answer stay, at least one thought token too; the close tag of a cut thought is not trained."""
    whole = example(thought, answer)
    short, what = fit(whole, max_length, "shorten")
    least = len(whole.input_ids) - thought + 1
    if max_length < least:
        assert short is None and "longer than" in what
        return
    cut = max(len(whole.input_ids) - max_length, 0)
    assert len(short.input_ids) == min(len(whole.input_ids), max_length) and bool(what) == bool(cut)
    gone = set(whole.input_ids) - set(short.input_ids)
    assert gone == set(range(5 + thought - cut, 5 + thought))
    close = short.input_ids.index(5 + thought)
    assert short.kinds[close] == Kind.TAG and short.weights[close] == (0 if cut else 1)
    assert all(weight == 1 for weight in short.weights[4:close] + short.weights[close + 1 :])
    assert short.tags == [{"tag": "thought", "start": 5, "stop": 5 + thought - cut}]


def test_the_longest_thought_is_cut_first():
    """Two turns in one example: the short thought stays whole while the long one can give."""
    one, two = example(3), example(9)
    both = bt.Example("id", [*range(30)], one.weights + two.weights, one.kinds + two.kinds)
    short, _ = fit(both, 24, "shorten")
    assert Counter(short.kinds)[Kind.THINK] == 6
    assert short.kinds[:12] == one.kinds and short.weights[:12] == one.weights
    shorter, _ = fit(both, 20, "shorten")
    assert Counter(shorter.kinds)[Kind.THINK] == 2 and fit(both, 19, "shorten")[0] is None


def test_real_rows_are_shortened_and_reported(tiny_tokenizer):
    """Row numbers of what was cut; the rest is as before."""
    rows = load_rows("tiny/teacher")[:200]
    whole = prepare(rows, tiny_tokenizer)
    limit = int(np.median([len(ids) for ids in whole["input_ids"]]))
    short = prepare(rows, tiny_tokenizer, limit, too_long="shorten")
    cut = [i for i, ids in enumerate(whole["input_ids"]) if len(ids) > limit]
    assert (
        0 < len(cut) < 200
        and short.report.changed == {"thought shortened": cut}
        and len(short) == 200
    )
    assert max(len(ids) for ids in short["input_ids"]) == limit
    for before, after in zip(whole, short, strict=True):
        if len(before["input_ids"]) <= limit:
            assert before == after
        assert after["input_ids"][-3:] == before["input_ids"][-3:]


# ---------------------------------------------------------------------------------------------- duplicates, overlap


def test_duplicates_are_found_and_dropped_on_request(tiny_tokenizer):
    """Equal tokens, whatever the id; the first stays. Also across the chunks that are tokenized at once."""
    rows = [talk(f"answer {i}") for i in range(600)]
    again = {100: 3, 590: 3, 599: 598}
    rows = [rows[again.get(i, i)] | {"id": str(i)} for i in range(600)]
    kept = prepare(rows, tiny_tokenizer)
    assert (kept.report.duplicates, len(kept), kept.report.dropped) == ([100, 590, 599], 600, {})
    fewer = prepare(rows, tiny_tokenizer, duplicates="drop")
    assert list(fewer["id"]) == [str(i) for i in range(600) if i not in again]
    assert list(fewer.report.dropped.values()) == [[100, 590, 599]]
    assert (
        fewer.report.kept == len(fewer) == 597 and fewer.report.kept + fewer.report.n_dropped == 600
    )


def test_overlap_names_test_questions_that_were_trained(tiny_tokenizer):
    """By the prompt, however it is answered."""
    train = prepare([talk("4", "2+2?", id="a"), talk("5", "2+3?", id="b")], tiny_tokenizer)
    test = prepare([talk("four", "2+2?", id="x"), talk("6", "3+3?", id="y")], tiny_tokenizer)
    assert bt.overlap(test, train) == [("x", "a")]
    assert bt.overlap(test, prepare([talk("7", "3+4?")], tiny_tokenizer)) == []


def test_the_tiny_sets_do_not_overlap(tiny_tokenizer):
    """The test problems are held out of training."""
    test = [
        row | {"messages": [*row["messages"], {"role": "assistant", "content": "x"}]}
        for row in load_rows("tiny/test")
    ]
    assert (
        bt.overlap(
            prepare(test, tiny_tokenizer), prepare(load_rows("tiny/teacher"), tiny_tokenizer)
        )
        == []
    )


# ---------------------------------------------------------------------------------------------- processes, streams


@pytest.fixture(scope="module")
def messy_file(tmp_path_factory):
    """600 rows in a file, some of which are dropped: several chunks, the last one short."""
    rows = [row for name in ("messy", "teacher") for row in load_rows(f"tiny/{name}")[:300]]
    path = tmp_path_factory.mktemp("messy") / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def plain(messy_file, tiny_tokenizer):
    """Its examples, made by one process without the cache."""
    rows = load_rows(messy_file)
    return prepare(rows, tiny_tokenizer, 60, duplicates="drop", cache=False)


@pytest.mark.parametrize("how", [{}, {"num_proc": 3, "cache": False}])
def test_processes_and_cache_change_nothing(messy_file, tiny_tokenizer, plain, how):
    """Neither examples, nor their order, nor the report."""
    other = prepare(load_rows(messy_file), tiny_tokenizer, 60, duplicates="drop", **how)
    assert columns(other) == columns(plain) and other.report == plain.report
    assert plain.report.dropped and 0 < len(plain) < 600


@pytest.mark.parametrize(("suffix", "num_proc"), [("jsonl", 1), ("parquet", 2)])
def test_a_stream_gives_the_same_examples_and_blur(
    messy_file, tiny_tokenizer, plain, suffix, num_proc
):
    """Ids, and so the draws, do not depend on how rows were read."""
    path = messy_file.with_suffix(f".{suffix}")
    if suffix == "parquet":
        Dataset.from_list(list(load_rows(messy_file))).to_parquet(path)
    stream = load_rows(path, stream=True)
    stream.name = load_rows(messy_file).name
    data = prepare(stream, tiny_tokenizer, 60, duplicates="drop", num_proc=num_proc)
    assert columns(data) == columns(plain)
    assert asdict(data.report) == asdict(plain.report) | {"source": str(path)}


def test_a_maker_is_cheap_to_pickle(qwen3):
    """Dill, which the pool of datasets takes, would spend seconds on the 150,000 tokens of a vocabulary."""
    renderer = bt.Renderer(qwen3)
    maker = _Maker(renderer, None, "rows", "rows", 99, None, lambda row, text: [], "drop", True)
    assert isinstance(maker.__getstate__()["renderer"], bytes)
    copy = dill.loads(dill.dumps(maker))
    batch = {"row": [pickle.dumps(talk("<think>a</think>b"))]}
    assert copy(batch, [0]) == maker(batch, [0])


class Counted(dict):
    """A row that counts how many of its kind are alive."""

    alive = 0
    most = 0

    def __init__(self, *args):
        super().__init__(*args)
        Counted.alive += 1
        Counted.most = max(Counted.most, Counted.alive)

    def __del__(self):
        Counted.alive -= 1

    def __reduce__(self):
        return dict, (dict(self),)


def test_a_stream_is_never_held(tiny_tokenizer):
    """A set larger than memory must not pile up, whether its rows are read or its examples written."""
    stream = Rows(lambda: (Counted(talk(f"answer {i}")) for i in range(2_500)), "s")
    assert len(prepare(stream, tiny_tokenizer)) == 2_500
    assert Counted.most <= 3


def test_an_error_in_a_process_is_the_same_error(tiny_tokenizer):
    """With source, row and field; and the pool ends."""
    rows = Rows([talk("fine")] * 300 + [talk(5)] + [talk("fine")] * 900, "here")
    with pytest.raises(RowError, match=r"here, row 300: field messages\[1\]\.content") as error:
        prepare(rows, tiny_tokenizer, num_proc=2)
    assert (error.value.source, error.value.row, error.value.field) == (
        "here",
        300,
        "messages[1].content",
    )


# ---------------------------------------------------------------------------------------------- the cache


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache; calling it tells how many prepared sets it holds."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return lambda: len(list((tmp_path / "cache" / "btsft_nb").glob("*.arrow")))


@pytest.mark.parametrize("kind", ["json", "saved"])
def test_a_file_that_is_read_as_it_comes_is_read_from_the_cache(
    tiny_tokenizer, cache, tmp_path, caplog, kind
):
    """A list in JSON, and what `datasets` saved; other content is another set."""
    made = []
    for text in ("one", "one", "two"):
        rows = [talk(text), talk("fine")]
        if kind == "json":
            path = tmp_path / "rows.json"
            path.write_text(json.dumps(rows))
        else:
            path = tmp_path / text
            if not path.exists():
                Dataset.from_list(rows).save_to_disk(path)
        made.append(prepare(load_rows(path, stream=True), tiny_tokenizer))
    assert cache() == 2 and "not cached" not in caplog.text
    assert made[0].cache_files == made[1].cache_files != made[2].cache_files


def test_any_sequence_of_rows_is_read(tiny_tokenizer):
    """Also one that has no `__iter__`, as a part of a torch data set."""
    rows = [talk("one"), talk("two")]
    part = torch.utils.data.Subset(rows, [1])
    assert len(prepare(part, tiny_tokenizer)) == 1
    assert len(prepare(tuple(rows), tiny_tokenizer)) == 2


def test_the_same_call_is_read_from_the_cache(tiny_tokenizer, cache, capsys):
    """Without rendering anything, and with its report."""
    rows = load_rows("tiny/messy")[:50]
    first = prepare(rows, tiny_tokenizer)
    second = prepare(load_rows("tiny/messy")[:50], bt.load_tokenizer("tiny"))
    assert cache() == 1 and columns(first) == columns(second) and first.report == second.report
    assert first.cache_files == second.cache_files
    assert capsys.readouterr().out.count("50 rows") == 2


@pytest.mark.parametrize(
    "change",
    [
        {"max_length": 500}, {"weights": {"think": 0.5}}, {"weights": {"think": 0.25}}, {"strict": False},
        {"too_long": "shorten"}, {"format": "messages"}, {"format": lambda row: row},
        {"rows": 51}, {"template": True}, {"tags": True},
    ],
    ids=lambda change: "-".join(change),
)  # fmt: skip
def test_whatever_matters_makes_another_entry(cache, change):
    """Data, template, tokenizer, settings."""
    tokenizer = bt.load_tokenizer("tiny")
    prepare(load_rows("tiny/messy")[:50], tokenizer)
    if change.pop("template", None):
        tokenizer.chat_template += " "
    if change.pop("tags", None):
        bt.add_tags(tokenizer, ("<a>", "</a>"))
    prepare(load_rows("tiny/messy")[: change.pop("rows", 50)], tokenizer, **change)
    assert cache() == 2


def test_a_failed_call_leaves_nothing(tiny_tokenizer, cache, tmp_path):
    """Neither a cache entry nor a temporary file; where every row is dropped, the next call says so again."""
    with pytest.raises(RowError):
        prepare([talk("fine")] * 300 + [talk(5)], tiny_tokenizer)
    assert cache() == 0 and not any((tmp_path / "cache").rglob("tmp*"))
    for _ in range(2):
        with pytest.raises(ValueError, match="nothing left"):
            prepare([talk("fine")], tiny_tokenizer, 3)


def test_duplicates_are_dropped_from_the_same_entry(tiny_tokenizer, cache):
    """Whether they are is decided after the cache."""
    rows = [talk("a"), talk("a"), talk("b")]
    assert len(prepare(rows, tiny_tokenizer)) == 3
    assert len(prepare(rows, tiny_tokenizer, duplicates="drop")) == 2
    assert cache() == 1


def test_a_function_without_a_hash_is_not_cached(tiny_tokenizer, cache, caplog):
    """It may hold a connection, which nothing can pickle; the examples are made all the same."""
    connection = sqlite3.connect(":memory:")

    def weights(row: dict, text: str) -> list:
        return [(0, 1, float(connection.execute("select 0.5").fetchone()[0]))]

    examples = prepare([talk("abc")], tiny_tokenizer, weights=weights)
    assert 0.5 in examples[0]["weights"]
    assert cache() == 0 and "not cached" in caplog.text


def test_rows_without_a_digest_are_not_cached(tiny_tokenizer, cache, caplog):
    """They may hold what JSON cannot write; those of a data set are not held at all."""
    assert len(prepare([talk("a", day=datetime.date(2026, 1, 1))], tiny_tokenizer)) == 1
    assert len(prepare(Dataset.from_list([talk("a")]), tiny_tokenizer)) == 1
    assert cache() == 0 and caplog.text.count("not cached") == 2


def test_what_was_not_used_for_long_is_deleted(tiny_tokenizer, cache, tmp_path):
    """By any call; what that call itself uses stays, and so does what is younger."""
    prepare([talk("a")], tiny_tokenizer)
    prepare([talk("b")], tiny_tokenizer)
    for file in (tmp_path / "cache").rglob("*.arrow"):
        os.utime(file, (0, 0))
    prepare([talk("a")], tiny_tokenizer)
    assert cache() == 1
    prepare([talk("c")], tiny_tokenizer)
    assert cache() == 2


def test_other_examples_need_another_version(tiny_tokenizer):
    """If this fails and examples were meant to change: raise CACHE_VERSION, and note the new digest here."""
    examples = prepare(load_rows("tiny/messy")[:200], tiny_tokenizer, 60, too_long="shorten")
    text = json.dumps(columns(examples))
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    assert (CACHE_VERSION, digest) == (1, "5baab4bf373d")


def test_the_blur_is_no_part_of_the_cache(tiny_tokenizer, cache):
    """Threshold, seed and epoch are drawn from the ids while training."""
    data = prepare(load_rows("tiny/messy")[:50], tiny_tokenizer)
    assert set(data.column_names) == set(COLUMNS)


# ---------------------------------------------------------------------------------------------- as any data set


@pytest.fixture
def loose(tiny_tokenizer):
    """A prepared set that no cache keeps, from rows that are a data set; the object that `prepare` made is gone."""
    rows = Dataset.from_list([talk(f"answer {i}", id=str(i)) for i in range(40)])
    return prepare(rows, tiny_tokenizer, cache=False).shuffle(seed=1)


def longest(example: dict) -> dict:
    return {"size": len(example["input_ids"])}


def test_a_prepared_set_survives_what_data_sets_go_through(loose, tiny_tokenizer, tmp_path):
    """Its file stays, and the report is found."""
    gc.collect()
    copies = {
        "pickled": pickle.loads(pickle.dumps(loose)),
        "selected": loose.select([3, 1]),
        "mapped": loose.map(longest),
        "mapped by processes": loose.map(longest, num_proc=2),
        "filtered": loose.filter(lambda example: example["id"] == "7"),
    }
    loose.save_to_disk(tmp_path / "saved")
    copies["saved"] = load_from_disk(tmp_path / "saved")
    for name, copy in copies.items():
        report = bt.report_of(copy)
        assert report.kept == report.rows == 40 and report.source == "rows", name
        known = {row["id"]: row for row in loose}
        for example in copy:
            assert example["input_ids"] == known[example["id"]]["input_ids"], name
    assert bt.report_of(Dataset.from_list([{"a": 1}])) is None


@pytest.mark.parametrize(
    "joined",
    [
        lambda first, second: interleave_datasets(
            [first, second], probabilities=[0.7, 0.3], seed=0
        ),
        lambda first, second: concatenate_datasets([first, second]),
    ],
    ids=["interleaved", "concatenated"],
)
def test_a_mixture_trains(loose, tiny_tokenizer, tmp_path, joined):
    """Mapped, shuffled, selected and pickled, too. Of two sets there is no one report; of parts of one there is."""
    other = prepare([talk(f"other {i}", id=f"x{i}") for i in range(20)], tiny_tokenizer)
    mixed = joined(loose, other)
    assert len({row["id"] for row in mixed}) == len(mixed) and {"x0", "x1"} < set(mixed["id"])
    mixed = mixed.map(longest).shuffle(seed=0).select(range(8))
    mixed = pickle.loads(pickle.dumps(mixed))
    assert bt.report_of(mixed) is None
    assert bt.report_of(joined(loose.select([0, 1]), loose.select([2, 3]))) == bt.report_of(loose)
    model, _ = bt.load_model("tiny", qlora=True)
    config = bt.BTSFTConfig(tmp_path, anchor=0, report_to="none", max_steps=1)
    trainer = bt.BTSFTTrainer(model, config, mixed, processing_class=tiny_tokenizer)
    assert trainer.train().training_loss > 0


def test_another_process_reads_it(loose, tmp_path):
    """As a worker that is spawned on macOS and Windows: it gets the set pickled, and opens its file by name."""
    (tmp_path / "set").write_bytes(pickle.dumps(loose))
    code = "import pickle, sys; print(*pickle.load(open(sys.argv[1], 'rb'))['id'])"
    command = [sys.executable, "-c", code, str(tmp_path / "set")]
    assert subprocess.check_output(command, text=True).split() == list(loose["id"])


# ---------------------------------------------------------------------------------------------- tolerance, tags


def test_a_tolerant_call_drops_and_counts_what_is_malformed(tiny_tokenizer):
    """By field, with row numbers; a line that could not be read is one of them."""
    rows = Rows([talk("a"), talk(5), 7, RowError("not valid JSON"), talk("b"), talk(6)], "here")
    examples = prepare(rows, tiny_tokenizer, strict=False)
    assert list(examples["id"]) == ["here#0", "here#4"]
    assert sorted(n for numbers in examples.report.dropped.values() for n in numbers) == [
        1,
        2,
        3,
        5,
    ]
    assert examples.report.rows == 6 and [1, 5] in examples.report.dropped.values()
    with pytest.raises(RowError, match="here, row 1"):
        prepare(rows, tiny_tokenizer)


@pytest.mark.parametrize(
    "wrong", [{"too_long": "cut"}, {"duplicates": "yes"}, {"weights": 3}, {"format": "chat"}]
)
def test_a_wrong_setting_is_named(tiny_tokenizer, wrong):
    """With what would do."""
    with pytest.raises(ValueError, match=str(next(iter(wrong.values())))):
        prepare([talk("a")], tiny_tokenizer, **wrong)


def test_tags_of_blocks_become_stretches_of_tokens(tokenizer):
    """Their text is the block's, up to the tokens that straddle its ends."""
    blocks = [
        {"type": "text", "text": "<think>One. ", "tag": "first"},
        {"type": "text", "text": "Two.</think>", "weight": 0.5},
        {"type": "text", "text": "\n\nThe answer", "tag": "first", "weight": -1},
        {"type": "text", "text": " is 3.", "tag": "second"},
    ]
    row = prepare([talk(blocks)], tokenizer)[0]
    texts = [tokenizer.decode(row["input_ids"][tag["start"] : tag["stop"]]) for tag in row["tags"]]
    opened = row["kinds"].count(Kind.TAG) == 1  # the template's prompt has the open tag
    assert [tag["tag"] for tag in row["tags"]] == ["first", "first", "second"]
    assert texts == ["One. " if opened else "<think>One. ", "\n\nThe answer", " is 3."] or texts[
        0
    ].endswith("One.")
    last = row["tags"][1]
    assert set(row["weights"][last["start"] : last["stop"]]) == {-1.0}


def test_tags_that_the_tokenizer_splits_are_added(shared):
    """And reported, each time; the ids are single and saved with the tokenizer."""
    tokenizer = bt.load_tokenizer(shared / "tokenizers" / "gpt2")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}\n{% endfor %}"
    for _ in range(2):
        examples = prepare([talk("<think>a</think>b")], tokenizer)
        assert examples.report.added_tags == ["<think>", "</think>"]
    assert bt.tag_ids(tokenizer) == (50257, 50258)
    assert [i for i, kind in zip(examples[0]["input_ids"], examples[0]["kinds"], strict=True) if kind == Kind.TAG] == [
        50257, 50258,
    ]  # fmt: skip


def test_a_model_without_rows_for_the_tags_is_refused(tmp_path, tiny_tokenizer):
    """Before the first step, not as an index error in the middle of it."""
    tokenizer = bt.load_tokenizer("tiny")
    bt.add_tags(tokenizer, ("<reason>", "</reason>"))
    model, _ = bt.load_model("tiny", qlora=True)
    data = prepare([talk("<think>a</think>b")], tokenizer)
    config = bt.BTSFTConfig(tmp_path, anchor=0, report_to="none")
    if max(bt.tag_ids(tokenizer)) < model.get_input_embeddings().weight.shape[0]:
        pytest.skip("the embedded model has spare rows")
    with pytest.raises(ValueError, match="too few for the tags"):
        bt.BTSFTTrainer(model, config, data, processing_class=tokenizer)


def test_other_tags_are_the_models_own(tmp_path):
    """Rows speak of <think>; the tokens, the prompt and what is sampled have the tokenizer's tags, also reloaded."""
    tokenizer = bt.load_tokenizer("tiny")
    assert bt.add_tags(tokenizer, ("<reason>", "</reason>")) == ["<reason>", "</reason>"]
    tokenizer.save_pretrained(tmp_path)
    for known in (tokenizer, bt.load_tokenizer(tmp_path)):
        row = prepare([talk("<think>a</think>b")], known)[0]
        text = known.decode(
            [i for i, kind in zip(row["input_ids"], row["kinds"], strict=True) if kind]
        )
        assert text.startswith("<reason>a</reason>b") and row["kinds"].count(Kind.TAG) == 2
        assert bt.tag_ids(known) == tuple(known.convert_tokens_to_ids(["<reason>", "</reason>"]))


# ---------------------------------------------------------------------------------------------- formatted text


def test_formatted_text_is_cut_at_its_marker(qwen3):
    """The prompt ends with the marker; completions end with their turn, which is trained; control tokens are read."""
    talk = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    text = f"{talk}<think>t1</think>a1<|im_end|>\n{talk}<think>t2</think>a2"
    (row,) = prepare([{"text": text}], qwen3, response_marker="<|im_start|>assistant\n")
    end = "<|im_end|>"
    assert qwen3.decode(row["input_ids"]) == text + end
    assert row["input_ids"] == qwen3(text + end)["input_ids"]
    trained = [
        token for token, weight in zip(row["input_ids"], row["weights"], strict=True) if weight
    ]
    assert qwen3.decode(trained) == f"<think>t1</think>a1{end}<think>t2</think>a2{end}"
    thoughts = [
        token
        for token, kind in zip(row["input_ids"], row["kinds"], strict=True)
        if kind == Kind.THINK
    ]
    assert qwen3.decode(thoughts) == "t1t2"


def test_weights_reach_formatted_text(qwen3):
    """A function counts in completions, and there alone."""
    text = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n<think>2+2=4</think>4"
    marker = "<|im_start|>assistant\n"
    (row,) = prepare(
        [{"text": text}],
        qwen3,
        response_marker=marker,
        weights=lambda row, text: [(*digit.span(), 0.25) for digit in re.finditer(r"\d", text)],
    )
    weights = [weight for weight, kind in zip(row["weights"], row["kinds"], strict=True) if kind]
    assert weights == [1, 0.25, 1, 0.25, 1, 0.25, 1, 0.25, 1]


def test_formatted_text_without_its_marker_is_refused(qwen3):
    """And so is a second marker before the first turn has ended, which would train the question."""
    with pytest.raises(RowError, match=r"rows, row 0: no text .* marker '### Answer:'"):
        prepare([{"text": "Question: 2+2? 4"}], qwen3, response_marker="### Answer:")
    text = "### Question: 2+2? ### Answer: 4 ### Question: 3+3? ### Answer: 6"
    for wrong in (text, "### Question: 2+2? ### Answer: "):
        with pytest.raises(RowError, match=r"row 0: no text and end of turn after each response"):
            prepare([{"text": wrong}], qwen3, response_marker="### Answer:")


def test_plain_text_is_trained_from_its_first_to_its_last_token(tokenizer):
    """And the end of the text is; its spellings of control tokens are text."""
    row = prepare([{"text": "Once upon a time <|im_end|> there was."}], tokenizer)[0]
    assert row["input_ids"][-1] == tokenizer.eos_token_id and all(row["weights"][2:])
    assert "Once upon a time <|im_end|> there was." in tokenizer.decode(row["input_ids"])
    controls = [token for token in row["input_ids"] if token in tokenizer.added_tokens_decoder]
    assert controls in ([tokenizer.eos_token_id], [tokenizer.bos_token_id, tokenizer.eos_token_id])
