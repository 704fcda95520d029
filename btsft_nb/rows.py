"""Rows from anywhere: generated sets, .json, .jsonl and .parquet files, data sets on the Hub; held, or streamed."""

import codecs
import datetime
import decimal
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pyarrow.parquet
from datasets import load_dataset

from .messages import RowError
from .tiny import problems

_OTHER_FILES = (".csv", ".tsv", ".txt", ".xlsx", ".yaml", ".yml", ".arrow", ".gz", ".zip")
_WRITTEN_BY_REPR = (bytes, datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, RowError)


class Rows(list):
    """A list of rows that knows where they come from, so that an error can say which row of what is wrong."""

    def __init__(self, rows: Iterable, source: str):
        super().__init__(rows)
        self.source = source
        if not self:
            raise ValueError(f"{source}: no rows; a data set needs at least one")

    def __getitem__(self, index):
        found = super().__getitem__(index)
        return Rows(found, self.source) if isinstance(index, slice) else found

    def digest(self) -> str | None:
        """A key for these rows and their source; None where a row holds what JSON cannot write."""
        digest = hashlib.blake2b(self.source.encode())
        try:
            for row in self:
                digest.update(json.dumps(row, sort_keys=True, default=_exactly).encode() + b"\n")
        except (TypeError, ValueError, RecursionError):
            return None
        return digest.hexdigest()


class RowStream:
    """Rows that are read anew whenever they are iterated over, and never held."""

    def __init__(self, read: Callable[[], Iterator], source: str, digest: Callable[[], str | None]):
        self._read, self.source, self._digest = read, source, digest

    def __iter__(self) -> Iterator:
        return self._read()

    def digest(self) -> str | None:
        """A key for the rows and their source; None where it cannot be known without reading them, as on the Hub."""
        return self._digest()


def load_rows(
    name: str | Path, split: str = "train", config: str | None = None, *, stream: bool = False, strict: bool = True
) -> Rows | RowStream:
    """Rows as dictionaries.

    Args:
        name: `tiny/pretrain`, `tiny/teacher`, `tiny/messy` or `tiny/test` (generated); a path that ends in .json (a
            list, or an object with a list for each split), .jsonl or .parquet; or the id of a data set on the Hub.
        split, config: which split (of an object or on the Hub) and which configuration (on the Hub).
        stream: read rows when they are asked for, again each time: .jsonl by line, .parquet by batch, the Hub as it
            comes. A `RowStream` has no length.
        strict: raise where a row cannot be read. Else its RowError stands in its place.

    Raises:
        FileNotFoundError: no such file, or no such data set on the Hub.
        RowError: a file or a row that cannot be read, by file, row and line.
        ValueError: no rows, an unknown tiny set or split, or another kind of file.
    """
    name, path = str(name), Path(name)
    if name.startswith("tiny/"):
        key = name.removeprefix("tiny/")
        if key not in problems.SIZES:
            raise ValueError(f"unknown data set {name!r}; generated are tiny/{', tiny/'.join(problems.SIZES)}")
        rows = Rows(problems.rows(key), name)
    elif path.suffix not in (".json", ".jsonl", ".parquet"):
        if path.exists() or path.suffix.lower() in _OTHER_FILES:
            raise ValueError(f"{name}: a file that ends in .json, .jsonl or .parquet wanted")
        return _from_hub(name, split, config, stream)
    elif not path.is_file():
        raise FileNotFoundError(f"{name}: no such file, seen from {Path.cwd()}")
    elif path.suffix == ".json":
        rows = _from_json(path, split, strict)
    else:
        read = _from_jsonl if path.suffix == ".jsonl" else _from_parquet
        if stream:
            return RowStream(lambda: read(path, strict), name, lambda: _file_digest(path))
        rows = Rows(read(path, strict), name)
    return RowStream(lambda: iter(rows), rows.source, rows.digest) if stream else rows


def _from_hub(name: str, split: str, config: str | None, stream: bool) -> Rows | RowStream:
    source = f"{name} [{split}]"
    try:
        rows = load_dataset(name, config, split=split, streaming=stream)
    except (ConnectionError, FileNotFoundError) as error:
        raise FileNotFoundError(f"{name}: neither a file nor a data set that the Hub gave: {error}") from error
    return RowStream(lambda: iter(rows), source, lambda: None) if stream else Rows(rows, source)


def _from_json(path: Path, split: str, strict: bool) -> Rows:
    name, content = str(path), path.read_bytes()
    try:
        rows = _parsed(content) if content.strip() else []
    except RowError as error:
        raise RowError(error.problem, source=name) from None
    if isinstance(rows, dict):
        splits = [key for key, value in rows.items() if isinstance(value, list)]
        found = [key for key in splits if key.lower() == split.lower()]
        if len(found) != 1:
            raise ValueError(f"{name}: one list called {split!r} wanted, in any case; the lists there: {splits}")
        rows, name = rows[found[0]], f"{name} [{found[0]}]"
    if not isinstance(rows, list):
        raise RowError(f"a JSON list of rows wanted, or an object of lists; got {type(rows).__name__}", source=name)
    return Rows((_row(row, name, i, strict) for i, row in enumerate(rows)), name)


def _from_jsonl(path: Path, strict: bool) -> Iterator:
    row = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                value = _parsed(line.rstrip())
            except RowError as error:
                value = RowError(f"line {number}: {error.problem}")
                if line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and number == 1:
                    raise value.at(str(path), row) from None  # nothing that follows can be read either
            yield _row(value, str(path), row, strict, f"line {number}: ")
            row += 1


def _from_parquet(path: Path, strict: bool) -> Iterator:
    row = 0
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            for value in _listed(batch):
                yield _row(value, str(path), row, strict)
                row += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise RowError(f"not a parquet file that can be read: {error}", source=str(path), row=row) from error


def _listed(batch: pyarrow.RecordBatch) -> list[dict | RowError]:
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError) as error:  # text that is not UTF-8, a date of a year that Python has not
        if len(batch) == 1:
            return [RowError(f"not readable: {error}")]
        return [row for i in range(len(batch)) for row in _listed(batch.slice(i, 1))]


def _row(value: object, source: str, row: int, strict: bool, line: str = "") -> dict | RowError:
    """The row; or, where it is none, the error that says where it stands, raised if `strict`."""
    if isinstance(value, dict):
        return value
    error = (
        value if isinstance(value, RowError) else RowError(f"{line}a JSON object wanted, got {type(value).__name__}")
    )
    if strict:
        raise error.at(source, row)
    return error.at(source, row)


def _parsed(content: bytes) -> object:
    """The value of a JSON text. Raises RowError."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise RowError("UTF-16 text, by its byte order mark; save the file as UTF-8")
    try:
        return json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        problem = f"not UTF-8 text: {error.reason} at byte {error.start + 1}; save the file as UTF-8"
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        problem = f"not valid JSON: {error.msg}, at {line}column {error.colno}"
    except RecursionError:
        problem = "JSON that is nested too deeply to be read"
    except ValueError as error:
        problem = f"JSON that cannot be read: {error}"  # a number of more than 4,300 digits
    raise RowError(problem)


def _exactly(value: object) -> str:
    """For json.dumps: what writes out in full and the same in every process."""
    if not isinstance(value, _WRITTEN_BY_REPR):
        raise TypeError(f"{type(value).__name__} has no exact text")
    return str(value) if isinstance(value, RowError) else repr(value)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "blake2b")
    digest.update(str(path).encode())
    return digest.hexdigest()
