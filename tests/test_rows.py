"""Rows from files, generated sets and the Hub, held and streamed; what cannot be read is named or marked."""

import datetime
import json
import os
import pickle
import re
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict, load_dataset

import btsft_nb as bt
from btsft_nb import RowError, Rows, load_rows

ROWS = [
    {"id": "a", "question": "2+2?", "answer": "two and two #### 4"},
    {"question": "é €?", "answer": "4"},
]


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
@pytest.mark.parametrize("as_text", [True, False])
def test_files_give_their_rows(tmp_path, monkeypatch, suffix, as_text):
    """All formats alike, held or streamed, from a Path or a str; what a column lacks in parquet is None."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    path = tmp_path / f"rows.{suffix}"
    if suffix == "parquet":
        Dataset.from_list(ROWS).to_parquet(path)
    elif suffix == "json":
        path.write_text(json.dumps(ROWS, ensure_ascii=False), encoding="utf-8")
    else:
        path.write_text("\n\n".join(json.dumps(row) for row in ROWS) + "\r\n\n", encoding="utf-8")
    loaded = load_rows(str(path) if as_text else path)
    assert [{k: v for k, v in row.items() if v is not None} for row in loaded] == ROWS
    assert loaded.source == str(path)
    stream = load_rows(path, stream=True)
    assert stream.source == str(path)
    assert list(stream) == list(stream) == list(loaded)
    if suffix != "json":  # which is parsed whole
        with pytest.raises(TypeError, match="no len"):
            len(stream)


@pytest.mark.parametrize("splits", [False, True])
def test_a_data_set_saved_to_disk_gives_its_rows(tmp_path, splits):
    """Of the split asked for, where it has several."""
    one = Dataset.from_list(ROWS)
    (DatasetDict(train=one, test=one.select([0])) if splits else one).save_to_disk(
        tmp_path / "saved"
    )
    loaded = load_rows(tmp_path / "saved")
    assert [{k: v for k, v in row.items() if v is not None} for row in loaded] == ROWS
    stream = load_rows(tmp_path / "saved", stream=True)
    assert list(stream) == list(loaded)
    if splits:
        assert len(load_rows(tmp_path / "saved", "test")) == 1
        with pytest.raises(ValueError, match="no split 'dev'; there are train, test"):
            load_rows(tmp_path / "saved", "dev")


def test_a_missing_file_is_named(tmp_path):
    """By the system."""
    with pytest.raises(FileNotFoundError, match=r"No such file .*nowhere\.jsonl"):
        load_rows(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize(("suffix", "text"), [("jsonl", ""), ("jsonl", "\n \n"), ("json", "[]")])
def test_an_empty_file_is_named(tmp_path, suffix, text):
    """There is nothing to train on."""
    path = tmp_path / f"empty.{suffix}"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(f"{path}: no rows")):
        load_rows(path)


@pytest.mark.parametrize("name", ["rows.csv", "rows.JSONL", "rows"])
def test_a_wrong_suffix_says_which_would_do(tmp_path, name):
    """A file that is there, of a kind that is not read."""
    (tmp_path / name).write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=rf"{name} is neither a \.json, \.jsonl or \.parquet file"):
        load_rows(tmp_path / name)


def test_an_unknown_tiny_set_lists_the_known_ones():
    """Never a look-up on the Hub."""
    with pytest.raises(ValueError, match=r"'tiny/pretrain', .*, 'tiny/test', got 'tiny/techer'"):
        load_rows("tiny/techer")


BROKEN = {
    "cut off": (b'{"question": "a", ', ": not readable as JSON in UTF-8: .*column 18"),
    "a list": (b"[1, 2]", ": expected a JSON object"),
    "a number": (b"5", ": expected a JSON object"),
    "null": (b"null", ": expected a JSON object"),
    "two values": (b"{} {}", ": not readable as JSON in UTF-8: Extra data: .*column 4"),
    "Latin-1": (
        '{"question": "café"}'.encode("latin1"),
        ": not readable as JSON in UTF-8: .* in position 17",
    ),
    "half a pair as bytes": (b'{"a": "\xed\xa0\x80"}', ": not readable as JSON in UTF-8"),
    "deep": (
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        ": not readable as JSON in UTF-8: maximum recursion",
    ),
    "a large number": (
        b'{"a": ' + b"9" * 5000 + b"}",
        ": not readable as JSON in UTF-8: .*4300 digits",
    ),
    "a line break in a text": (
        b'{"a": "b\rc"}',
        ": not readable as JSON in UTF-8: Invalid control character .*column 9",
    ),
}


@pytest.mark.parametrize(("line", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_line_is_named_or_stands_in_its_place(tmp_path, line, words):
    """Row counted from 0 without blank lines, line as in an editor; held and streamed alike."""
    path = tmp_path / "rows.jsonl"
    good = json.dumps(ROWS[0]).encode()
    path.write_bytes(b"\n".join([good, b"", line, good, line]))
    for stream in (False, True):
        with pytest.raises(
            RowError, match=f"{re.escape(str(path))}, row 1: line 3{words}"
        ) as error:
            list(load_rows(path, stream=stream))
        assert (error.value.source, error.value.row) == (str(path), 1)
        rows = list(load_rows(path, strict=False, stream=stream))
        assert rows[0] == rows[2] == ROWS[0] and len(rows) == 4
        assert [(row.row, row.source) for row in (rows[1], rows[3])] == [
            (1, str(path)),
            (3, str(path)),
        ]
        assert str(rows[1]) == str(error.value) == str(pickle.loads(pickle.dumps(rows[1])))


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_byte_order_mark_of_utf_8_is_no_part_of_the_text(tmp_path, suffix):
    """As some editors on Windows write."""
    path = tmp_path / f"rows.{suffix}"
    text = json.dumps(ROWS) if suffix == "json" else "\r\n".join(map(json.dumps, ROWS))
    path.write_text(text, encoding="utf-8-sig", newline="")
    assert list(load_rows(path)) == ROWS


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'[{"question": "a"},\n]', "not readable as JSON in UTF-8: .* line 2 column 1"),
        (b'["caf\xe9"]', "not readable as JSON in UTF-8"),
        ('[{"question": "a"}]'.encode("utf-16"), "not readable as JSON in UTF-8"),
        (b"[" * 100_000, "not readable as JSON in UTF-8"),
        (b"[" + b"9" * 5000 + b"]", "not readable as JSON in UTF-8"),
        (b"", "not readable as JSON in UTF-8: .* line 1 column 1"),
        (b"5", "expected a list of rows or an object of lists, got 5"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_broken_json_file_is_named(tmp_path, content, words, strict):
    """With the place that the parser stopped at; how many rows were lost nobody knows, so it is no row's error."""
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(RowError, match=f"{re.escape(str(path))}: {words}") as error:
        load_rows(path, strict=strict)
    assert error.value.source == str(path)


def test_what_is_no_row_in_a_json_list_is_named(tmp_path):
    """By its number in the list."""
    path = tmp_path / "rows.json"
    path.write_text('[{"question": "a"}, 5]')
    with pytest.raises(RowError, match=re.escape(f"{path}, row 1: expected a JSON object, got 5")):
        load_rows(path)
    assert load_rows(path, strict=False)[1].row == 1


def test_an_object_of_lists_has_splits(tmp_path):
    """The source says which, so that ids of two splits differ."""
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"train": ROWS, "TEST": ROWS[:1]}))
    assert list(load_rows(path)) == ROWS
    assert list(load_rows(path, "TEST")) == ROWS[:1]
    assert list(load_rows(path, "TEST", stream=True)) == ROWS[:1]
    assert load_rows(path, "TEST").source == f"{path} [TEST]"
    with pytest.raises(ValueError, match="no split 'test'; there are train, TEST"):
        load_rows(path, "test")
    path.write_text(json.dumps({"train": 5}))
    with pytest.raises(RowError, match=r"\[train\]: expected a list of rows or .*, got 5"):
        load_rows(path)


@pytest.mark.parametrize("strict", [True, False])
def test_a_broken_parquet_file_is_named(tmp_path, strict):
    """No parquet at all, cut off, or with damaged pages."""
    path = tmp_path / "rows.parquet"
    Dataset.from_list(ROWS * 500).to_parquet(path)
    whole = path.read_bytes()
    for content in (b"no parquet", b"", whole[:-20], whole[:4] + b"\xff" * 400 + whole[404:]):
        path.write_bytes(content)
        with pytest.raises(RowError, match=re.escape(f"{path}: not readable as parquet")):
            load_rows(path, strict=strict)


@pytest.mark.parametrize("strict", [True, False])
def test_a_parquet_file_with_bytes_for_text_is_named(tmp_path, strict):
    """No row of it can be told from the others."""
    path = tmp_path / "rows.parquet"
    text = pyarrow.array([b"a", b"caf\xe9", b"b"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), path)
    with pytest.raises(RowError, match=re.escape(f"{path}: not readable as parquet: ")):
        load_rows(path, strict=strict)


def test_a_stream_of_lines_reads_no_further_than_it_is_asked(tmp_path):
    """A broken line further on is no matter yet; and what is added to the file is read the next time."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n{broken")
    stream = load_rows(path, stream=True)
    assert next(iter(stream)) == ROWS[0]
    path.write_text("\n".join(map(json.dumps, ROWS)))
    assert list(stream) == ROWS


def test_generated_sets_can_be_streamed():
    """Again and again, as the same rows."""
    stream, rows = load_rows("tiny/test", stream=True), load_rows("tiny/test")
    assert list(stream) == list(stream) == list(rows)
    assert stream.source == "tiny/test" and stream.digest() == rows.digest()


def test_a_missing_file_is_named_before_it_is_streamed(tmp_path):
    with pytest.raises(FileNotFoundError, match="No such file"):
        load_rows(tmp_path / "nowhere.jsonl", stream=True)


# ---------------------------------------------------------------------------------------------- digests


def test_a_digest_tells_rows_and_sources_apart():
    """Equal for equal rows, whatever the order of their fields; another for any other row, order, number or source."""
    turned = [dict(reversed(row.items())) for row in ROWS]
    key = Rows(ROWS, "here").digest()
    assert key == Rows(turned, "here").digest() and len(key) == 16
    others = [
        Rows(ROWS, "there"),
        Rows(ROWS[::-1], "here"),
        Rows(ROWS[:1], "here"),
        Rows([*ROWS, {}], "here"),
    ]
    others += [
        Rows([{**ROWS[0], "id": "b"}, ROWS[1]], "here"),
        Rows([ROWS[0], {**ROWS[1], "answer": 4}], "here"),
    ]
    keys = {key, *(rows.digest() for rows in others)}
    assert len(keys) == 7 and None not in keys


def test_rows_that_json_cannot_write_have_no_digest():
    """Objects, dates, and what is too deep or too large; nor have rows that are not held, but for those of a file."""
    deep = []
    for _ in range(100_000):
        deep = [deep]
    day = datetime.date(2026, 1, 1)
    for value in (object(), {1, 2}, deep, 10**5000, {1: 2, "a": 3}, day, b"a", RowError("x")):
        with pytest.raises((TypeError, ValueError, RecursionError)):
            Rows([{"a": value}], "here").digest()
    with pytest.raises(TypeError):
        Rows(iter, "here").digest()


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_the_digest_of_a_stream_is_that_of_its_file(tmp_path, suffix):
    """It changes with the content and the name, and with nothing else."""
    paths = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for path in paths:
        Dataset.from_list(ROWS).to_parquet(path) if suffix == "parquet" else path.write_text(
            json.dumps(ROWS)
        )
    first, second = (load_rows(path, stream=True).digest() for path in paths)
    assert first == load_rows(paths[0], stream=True).digest() != second
    if suffix == "parquet":
        Dataset.from_list(ROWS[::-1]).to_parquet(paths[0])
    else:
        paths[0].write_text(json.dumps(ROWS[::-1]))
    assert load_rows(paths[0], stream=True).digest() not in (first, second)


def spellings(path, monkeypatch) -> list:
    """Of one path: from its folder, from the folder above, absolute, as text or not."""
    monkeypatch.chdir(path.parent)
    return [path.name, f"./{path.name}", f"../{path.parent.name}/{path.name}", path, str(path)]


@pytest.mark.parametrize(
    ("suffix", "stream"), [("json", False), ("jsonl", True), ("jsonl", False), ("parquet", True)]
)
def test_a_file_has_one_name_and_digest_however_its_path_is_spelled(
    tmp_path, monkeypatch, suffix, stream
):
    """Else its rows would have other ids, and other places would be blurred."""
    path = tmp_path / f"d.{suffix}"
    if suffix == "parquet":
        Dataset.from_list(ROWS).to_parquet(path)
    else:
        path.write_text(json.dumps(ROWS if suffix == "json" else ROWS[0]))
    rows = [load_rows(name, stream=stream) for name in spellings(path, monkeypatch)]
    assert {row.name for row in rows} == {f"{tmp_path.name}/d.{suffix}"}
    digests = {row.digest() for row in rows}
    monkeypatch.chdir("/")
    assert {load_rows(path, stream=stream).digest()} == digests


def test_examples_have_the_same_ids_however_the_path_is_spelled(
    tmp_path, monkeypatch, tiny_tokenizer
):
    """And a folder or split of another name others."""
    path = tmp_path / "d.json"
    path.write_text(json.dumps({"train": ROWS, "test": ROWS}))
    ids = {
        tuple(bt.prepare(load_rows(name), tiny_tokenizer)["id"])
        for name in spellings(path, monkeypatch)
    }
    assert ids == {("a", f"{tmp_path.name}/d.json [train]#1")}
    assert load_rows(path, "test").name == f"{tmp_path.name}/d.json [test]"


def test_splits_and_configurations_have_names_of_their_own(tmp_path, monkeypatch):
    """Of sets saved to disk and of those on the Hub."""
    one = Dataset.from_list(ROWS)
    DatasetDict(train=one, test=one).save_to_disk(tmp_path / "saved")
    names = [load_rows(tmp_path / "saved", split).name for split in ("train", "test")]
    assert names == [f"{tmp_path.name}/saved [train]", f"{tmp_path.name}/saved [test]"]
    monkeypatch.setattr("btsft_nb.data.rows.load_dataset", lambda *_, **__: one)
    names = [load_rows("openai/gsm8k", config=config).name for config in ("main", "socratic", None)]
    assert names == [
        "openai/gsm8k [main, train]",
        "openai/gsm8k [socratic, train]",
        "openai/gsm8k [train]",
    ]


def test_a_local_folder_may_be_called_tiny(tmp_path, monkeypatch):
    """The generated sets give way to a file or a saved data set, and to nothing else."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny" / "teacher").mkdir(parents=True)
    (tmp_path / "tiny" / "data.jsonl").write_text(json.dumps(ROWS[0]))
    assert list(load_rows("tiny/data.jsonl")) == ROWS[:1]
    assert load_rows("tiny/teacher").name == "tiny/teacher"
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "tiny" / "test")
    assert [row["answer"] for row in load_rows("tiny/test")] == [row["answer"] for row in ROWS]


def test_rows_can_be_sliced_to_nothing():
    rows = load_rows("tiny/teacher")
    assert (len(rows[:0]), rows[:0].source, rows[:0].name) == (0, "tiny/teacher", "tiny/teacher")
    assert rows[1:3][0] == rows[1] and repr(rows) == "Rows('tiny/teacher')"


# ---------------------------------------------------------------------------------------------- the Hub


def test_a_data_set_on_the_hub_by_its_id(tmp_path):
    """Offline, from the cache that an earlier download leaves."""
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_text(
        '{"question": "3+4?", "answer": "3+4=7. #### 7"}\n'
    )
    cache = tmp_path / "cache"
    load_dataset(str(tmp_path / "rows"), cache_dir=str(cache))
    (cache / "rows").rename(cache / "someone___rows")
    code = "import btsft_nb as bt; rows = bt.load_rows('someone/rows'); print(rows.source, dict(rows[0]))"
    environment = os.environ | {"HF_DATASETS_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    wanted = "someone/rows [train] {'question': '3+4?', 'answer': '3+4=7. #### 7'}"
    assert wanted in done.stdout, done.stderr[-1000:]


@pytest.mark.parametrize("stream", [True, False])
def test_a_data_set_that_the_hub_does_not_give_is_named(stream):
    """Here for want of a network."""
    with pytest.raises((ConnectionError, FileNotFoundError), match="someone/nothing"):
        load_rows("someone/nothing", stream=stream)
