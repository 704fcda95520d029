"""Rows from files, generated sets and the Hub, held and streamed; what cannot be read is named or marked."""

import codecs
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

from btsft_nb import RowError, Rows, RowStream, load_rows

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
    assert (
        isinstance(stream, RowStream)
        and stream.source == str(path)
        and not hasattr(stream, "__len__")
    )
    assert list(stream) == list(stream) == loaded


@pytest.mark.parametrize("splits", [False, True])
def test_a_data_set_saved_to_disk_gives_its_rows(tmp_path, splits):
    """Of the split asked for, where it has several; its digest is that of its rows."""
    one = Dataset.from_list(ROWS)
    (DatasetDict(train=one, test=one.select([0])) if splits else one).save_to_disk(
        tmp_path / "saved"
    )
    loaded = load_rows(tmp_path / "saved")
    assert [{k: v for k, v in row.items() if v is not None} for row in loaded] == ROWS
    stream = load_rows(tmp_path / "saved", stream=True)
    assert (
        list(stream) == list(loaded)
        and stream.digest() == load_rows(tmp_path / "saved", stream=True).digest()
    )
    if splits:
        assert len(load_rows(tmp_path / "saved", "test")) == 1
        with pytest.raises(ValueError, match="no split 'dev'; there are train, test"):
            load_rows(tmp_path / "saved", "dev")


def test_a_missing_file_is_named(tmp_path):
    """With the folder it was looked for from."""
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl: no such file, seen from /"):
        load_rows(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize(
    ("suffix", "text"), [("jsonl", ""), ("jsonl", "\n \n"), ("json", ""), ("json", "[]")]
)
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
    with pytest.raises(ValueError, match=rf"{name}: .*\.json, \.jsonl or \.parquet"):
        load_rows(tmp_path / name)


def test_an_unknown_tiny_set_lists_the_known_ones():
    """Never a look-up on the Hub."""
    with pytest.raises(
        ValueError, match=r"'tiny/techer'.*tiny/pretrain, tiny/teacher, tiny/messy, tiny/test"
    ):
        load_rows("tiny/techer")


BROKEN = {
    "cut off": (b'{"question": "a", ', "not valid JSON: .*column 18"),
    "a list": (b"[1, 2]", "a JSON object wanted, got list"),
    "a number": (b"5", "a JSON object wanted, got int"),
    "null": (b"null", "a JSON object wanted, got NoneType"),
    "two values": (b"{} {}", "not valid JSON: Extra data, at column 4"),
    "Latin-1": (
        '{"question": "café"}'.encode("latin1"),
        "not UTF-8 text: .* at byte 18; save the file as UTF-8",
    ),
    "half a pair as bytes": (b'{"a": "\xed\xa0\x80"}', "not UTF-8 text"),
    "deep": (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", ".*nested too deeply"),
    "a large number": (b'{"a": ' + b"9" * 5000 + b"}", ".*4300 digits"),
    "a line break in a text": (b'{"a": "b\rc"}', "not valid JSON: Invalid control character"),
}


@pytest.mark.parametrize(("line", "words"), BROKEN.values(), ids=BROKEN)
def test_a_broken_line_is_named_or_stands_in_its_place(tmp_path, line, words):
    """Row counted from 0 without blank lines, line as in an editor; held and streamed alike."""
    path = tmp_path / "rows.jsonl"
    good = json.dumps(ROWS[0]).encode()
    path.write_bytes(b"\n".join([good, b"", line, good, line]))
    for stream in (False, True):
        with pytest.raises(
            RowError, match=f"{re.escape(str(path))}, row 1: line 3: {words}"
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


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
@pytest.mark.parametrize("strict", [True, False])
def test_utf_16_is_named_with_its_remedy(tmp_path, encoding, suffix, strict):
    """Nothing in such a file can be read, so it is never taken for rows that are bad."""
    path = tmp_path / f"rows.{suffix}"
    bom = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}[encoding]
    path.write_bytes(bom + '{"question": "a"}\n{"question": "b"}'.encode(encoding))
    with pytest.raises(
        RowError, match=re.escape(str(path)) + ".*UTF-16 text.*save the file as UTF-8"
    ):
        load_rows(path, strict=strict)


@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_a_byte_order_mark_of_utf_8_is_no_part_of_the_text(tmp_path, suffix):
    """As some editors on Windows write."""
    path = tmp_path / f"rows.{suffix}"
    text = json.dumps(ROWS) if suffix == "json" else "\r\n".join(map(json.dumps, ROWS))
    path.write_text(text, encoding="utf-8-sig", newline="")
    assert load_rows(path) == ROWS


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'[{"question": "a"},\n]', "not valid JSON: .*line 2, column 1"),
        (b'["caf\xe9"]', "not UTF-8 text"),
        (b"[" * 100_000, ".*nested too deeply"),
        (b"[" + b"9" * 5000 + b"]", ".*4300 digits"),
        (b"5", "a list of rows or an object of lists wanted, got int"),
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
    with pytest.raises(RowError, match=re.escape(f"{path}, row 1: a JSON object wanted, got int")):
        load_rows(path)
    assert load_rows(path, strict=False)[1].row == 1


def test_an_object_of_lists_has_splits(tmp_path):
    """Any case; the source says which, so that ids of two splits differ."""
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"Train": ROWS, "TEST": ROWS[:1], "about": "x"}))
    assert (
        load_rows(path) == ROWS
        and load_rows(path, "test") == list(load_rows(path, "Test", stream=True)) == ROWS[:1]
    )
    assert load_rows(path, "test").source == f"{path} [TEST]"
    with pytest.raises(
        ValueError, match=re.escape("'dev' wanted, in any case; the lists there: ['Train', 'TEST']")
    ):
        load_rows(path, "dev")
    path.write_text(json.dumps({"train": ROWS, "Train": ROWS}))
    with pytest.raises(ValueError, match="one list called 'train' wanted"):
        load_rows(path)


@pytest.mark.parametrize("strict", [True, False])
def test_a_broken_parquet_file_is_named(tmp_path, strict):
    """No parquet at all, cut off, or with damaged pages."""
    path = tmp_path / "rows.parquet"
    Dataset.from_list(ROWS * 500).to_parquet(path)
    whole = path.read_bytes()
    for content in (b"no parquet", b"", whole[:-20], whole[:4] + b"\xff" * 400 + whole[404:]):
        path.write_bytes(content)
        with pytest.raises(
            RowError, match=re.escape(f"{path}: not a parquet file that can be read")
        ):
            load_rows(path, strict=strict)


def test_a_row_of_a_parquet_file_that_cannot_be_read_is_named(tmp_path):
    """Bytes that call themselves text; the other rows of their batch are read."""
    path = tmp_path / "rows.parquet"
    text = pyarrow.array([b"a", b"caf\xe9", b"b"]).view(pyarrow.string())
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), path)
    with pytest.raises(RowError, match=re.escape(f"{path}, row 1: not readable: ")):
        load_rows(path)
    rows = load_rows(path, strict=False)
    assert [rows[0], rows[1].row, rows[2]] == [{"text": "a"}, 1, {"text": "b"}]


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
    assert (
        list(stream) == list(stream) == rows
        and stream.source == "tiny/test"
        and stream.digest() == rows.digest()
    )


def test_a_missing_file_is_named_before_it_is_streamed(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_rows(tmp_path / "nowhere.jsonl", stream=True)


# ---------------------------------------------------------------------------------------------- digests


def test_a_digest_tells_rows_and_sources_apart():
    """Equal for equal rows, whatever the order of their fields; another for any other row, order, number or source."""
    turned = [dict(reversed(row.items())) for row in ROWS]
    key = Rows(ROWS, "here").digest()
    assert key == Rows(turned, "here").digest() and len(key) == 128
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


def test_a_digest_that_cannot_be_known_is_none():
    """What has no exact text, is too deep or too large; dates and bytes, as parquet has them, do have one."""
    deep = []
    for _ in range(100_000):
        deep = [deep]
    for value in (object(), {1, 2}, deep, 10**5000, {1: 2, "a": 3}):
        assert Rows([{"a": value}], "here").digest() is None
    dates = [datetime.date(2026, 1, day) for day in (1, 2)]
    assert (
        len(
            {Rows([{"a": value}], "here").digest() for value in (*dates, b"a", b"b", "\ud800")}
            - {None}
        )
        == 5
    )


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
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


def test_rows_that_could_not_be_read_count_in_the_digest(tmp_path):
    """By what is wrong with them and where."""
    path, keys = tmp_path / "rows.jsonl", set()
    for text in ("{}\n5", "{}\n{", "5\n{}"):
        path.write_text(text)
        keys.add(load_rows(path, strict=False).digest())
    assert len(keys) == 3 and None not in keys


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
    with pytest.raises(FileNotFoundError, match="someone/nothing: neither a file nor a data set"):
        load_rows("someone/nothing", stream=stream)
