"""Rows from anywhere: generated sets, files, data sets on disk or on the Hub; held in memory, or read as they come."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow.parquet
from datasets import Dataset, load_dataset, load_from_disk
from datasets.fingerprint import Hasher

from ..checks import check_choice
from ..tiny import problems
from .errors import RowError, unexpected


class Rows:
    """Rows, and where they come from.

    Args:
        rows: dictionaries, or a function that reads them anew each time: then they have no length and no slices.
        source: the file or data set, for errors and reports.
        name: what the ids of rows begin with that have none; by default `source`.
        file: the path of what the function reads, where it is one file.

    >>> rows = bt.Rows([{"question": "3 + 4?", "answer": "7"}], source="mine")
    >>> len(rows), rows[0]["answer"], rows[:1].source
    (1, '7', 'mine')
    """

    def __init__(self, rows: Iterable | Callable, source: str, name: str | None = None, file=None):
        self.source = source
        self.name = name or source
        # What is held is read once: a generator gives its rows a single time.
        self._rows = rows if callable(rows) else list(rows)
        self._file = file

    def __iter__(self):
        return self._rows() if callable(self._rows) else iter(self._rows)

    def __len__(self):
        return len(self._rows)

    def __getitem__(self, index: int | slice) -> "dict | RowError | Rows":
        rows = self._rows[index]
        return Rows(rows, self.source, self.name) if isinstance(index, slice) else rows

    def __repr__(self):
        return f"Rows({self.source!r})"

    def digest(self) -> str:
        """A key of these rows and their name, the same in every process.

        Raises TypeError, ValueError or RecursionError where rows cannot be written as JSON, or are read from elsewhere
        than from one file.
        """
        # Rows that are not held would take long to read; their file has a key.
        if self._file:
            with self._file.open("rb") as file:
                return f"{self.name} {hashlib.file_digest(file, 'blake2b').hexdigest()}"
        # The name counts: it is in the ids of the examples.
        # Hasher.hash would take 4 s for 64,000 chats, which is 17 times as long.
        parts = [self.name, *self._rows]
        return Hasher.hash_bytes(json.dumps(part, sort_keys=True).encode() for part in parts)


def load_rows(
    name: str | Path,
    split: str = "train",
    config: str | None = None,
    *,
    stream: bool = False,
    strict: bool = True,
) -> Rows:
    """Rows as dictionaries.

    Args:
        name: a .json (a list, or an object with a list for each split), .jsonl or .parquet file; a data set that was
            saved to disk; `tiny/pretrain`, `tiny/teacher`, `tiny/messy` or `tiny/test` (generated); or the id of a
            data set on the Hub.
        split: of an object of lists, or of a data set.
        config: of a data set on the Hub.
        stream: read rows as they are needed, again each time, instead of holding them.
        strict: raise where a row cannot be read. Else its RowError stands in its place.

    Raises:
        FileNotFoundError: no such file, or no such data set on the Hub.
        RowError: a file or a row that cannot be read, by file, row and line.
        ValueError: no rows, an unknown tiny set or split, or another kind of file.

    >>> rows = bt.load_rows("tiny/test")
    >>> len(rows), rows[0]["messages"][0]["content"]
    (200, 'There are 14 coins in a box. Lea adds 18. How many coins are in the box?')
    """
    path = Path(name)
    is_saved = (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()
    # What is there comes first: a folder may be called tiny, too.
    if is_saved or path.suffix in (".json", ".jsonl", ".parquet"):
        rows = _from_path(path, split, strict)
    elif path.parts[0] == "tiny":
        # A misspelt one is never looked up on the Hub.
        check_choice("a generated set", str(name), [f"tiny/{key}" for key in problems.SIZES])
        rows = Rows(problems.rows(path.name), str(name))
    elif path.exists():
        raise ValueError(f"{path} is neither a .json, .jsonl or .parquet file nor a saved data set")
    else:
        hub = load_dataset(str(name), config, split=split, streaming=stream)
        # Two configurations of a set are different rows, so their ids differ.
        rows = Rows(hub.__iter__, f"{name} [{config}, {split}]" if config else f"{name} [{split}]")
    # A stream is checked row by row as it is read, even for being empty.
    if stream:
        return rows
    held = Rows(rows, rows.source, rows.name)
    if not len(held):
        raise ValueError(f"{rows.source}: no rows")
    return held


def _from_path(path, split, strict):
    """The rows of a file, or of the folder of a saved data set."""
    path.stat()  # raises FileNotFoundError
    source = str(path)
    # The file and its folder: the same however the path is spelled, and on every machine.
    name = "/".join(Path(os.path.abspath(path)).parts[-2:])
    # Files of any size are read as they are needed.
    if path.suffix in (".jsonl", ".parquet"):
        read = _json_lines if path.suffix == ".jsonl" else _parquet_rows
        return Rows(lambda: _checked(read(path), source, strict), source, name, path)
    rows = _parsed(path.read_bytes()) if path.is_file() else load_from_disk(source)
    if isinstance(rows, RowError):
        raise rows.at(source, None)
    # An object of lists, or a DatasetDict
    if isinstance(rows, dict):
        if split not in rows:
            raise ValueError(f"{source}: no split {split!r}; there are {', '.join(rows)}")
        rows = rows[split]
        source += f" [{split}]"
        name += f" [{split}]"
    if not isinstance(rows, (list, Dataset)):
        raise unexpected(rows, "a list of rows or an object of lists").at(source, None)
    # what `datasets` saved has its fingerprint beside it
    file = path if path.is_file() else Path(rows.cache_files[0]["filename"]).with_name("state.json")
    return Rows(lambda: _checked(rows, source, strict), source, name, file)


def _json_lines(path):
    """The rows, or an error in place of a line that is none."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            row = _parsed(line.rstrip(), f"line {number}: ")
            if not isinstance(row, (dict, RowError)):
                row = RowError(f"line {number}: expected a JSON object")
            yield row


def _parsed(content, place=""):
    """A JSON value in UTF-8, or an error in its place: one bad line of many thousand should not cost the others."""
    # Editors on Windows write a mark before UTF-8, which is no JSON.
    try:
        return json.loads(content.decode("utf-8-sig"))
    # No JSON, another encoding, brackets without end, a number of thousands of digits
    except (ValueError, RecursionError) as error:
        return RowError(f"{place}not readable as JSON in UTF-8: {error}")


def _parquet_rows(path):
    try:
        # A thousand rows at once are quick, and fit into memory.
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            yield from batch.to_pylist()
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise RowError(f"not readable as parquet: {error}", source=str(path)) from error


def _checked(rows, source, strict):
    """The rows; in place of what is none, an error with its place, which is raised if `strict`."""
    # Rows are numbered from 0, bad ones included, so that numbers and ids stay when one is mended.
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            error = row if isinstance(row, RowError) else unexpected(row, "a JSON object")
            row = error.at(source, i)
            if strict:
                raise row
        yield row
