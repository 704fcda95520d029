"""Rows from anywhere: generated sets, .json, .jsonl and .parquet files, data sets on the Hub; held, or streamed."""

import codecs
import datetime
import decimal
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet
from datasets import DatasetDict, load_dataset, load_from_disk

from ..tiny import problems
from .messages import RowError

_UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_EXACT_BY_REPR = (
    bytes,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    RowError,
)


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


@dataclass
class RowStream:
    """Rows that `read` gives anew whenever they are iterated over, and that are never held.

    `digest()` is as for `Rows`; None where it cannot be known without reading them, as on the Hub.
    """

    read: Callable[[], Iterator]
    source: str
    digest: Callable[[], str | None]

    def __iter__(self) -> Iterator:
        return self.read()


def load_rows(
    name: str | Path,
    split: str = "train",
    config: str | None = None,
    *,
    stream: bool = False,
    strict: bool = True,
) -> Rows | RowStream:
    """Rows as dictionaries.

    Args:
        name: `tiny/pretrain`, `tiny/teacher`, `tiny/messy` or `tiny/test` (generated); a path that ends in .json (a
            list, or an object with a list for each split), .jsonl or .parquet; the folder of a data set that was
            saved to disk; or the id of one on the Hub.
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
            raise ValueError(
                f"unknown data set {name!r}; generated are tiny/{', tiny/'.join(problems.SIZES)}"
            )
        rows = Rows(problems.rows(key), name)
    elif any((path / file).is_file() for file in ("dataset_dict.json", "state.json")):
        rows = _from_disk(path, split)
    elif path.suffix not in (".json", ".jsonl", ".parquet"):
        if path.exists():
            raise ValueError(f"{name}: a file that ends in .json, .jsonl or .parquet wanted")
        rows = _from_hub(name, split, config, stream)
    elif not path.is_file():
        raise FileNotFoundError(f"{name}: no such file, seen from {Path.cwd()}")
    elif path.suffix == ".json":
        rows = _from_json(path, split, strict)
    else:
        read = _from_lines if path.suffix == ".jsonl" else _from_parquet
        rows = RowStream(
            lambda: _placed(read(path), name, strict), name, lambda: _file_digest(path)
        )
    if stream == isinstance(rows, RowStream):
        return rows
    return RowStream(rows.__iter__, rows.source, rows.digest) if stream else Rows(rows, rows.source)


def _from_hub(name: str, split: str, config: str | None, stream: bool) -> RowStream:
    try:
        rows = load_dataset(name, config, split=split, streaming=stream)
    except (ConnectionError, FileNotFoundError) as error:
        raise FileNotFoundError(
            f"{name}: neither a file nor a data set that the Hub gave: {error}"
        ) from error
    return RowStream(rows.__iter__, f"{name} [{split}]", lambda: None)


def _from_disk(path: Path, split: str) -> RowStream:
    rows = load_from_disk(str(path))
    if isinstance(rows, DatasetDict):
        if split not in rows:
            raise ValueError(f"{path}: no split {split!r}; there are {', '.join(rows)}")
        rows = rows[split]
    return RowStream(rows.__iter__, str(path), lambda: rows._fingerprint)


def _from_json(path: Path, split: str, strict: bool) -> Rows:
    name, content = str(path), path.read_bytes()
    rows = (
        _parsed(content, "a list of rows or an object of lists", list, dict)
        if content.strip()
        else []
    )
    if isinstance(rows, RowError):
        raise RowError(rows.problem, source=name)
    if isinstance(rows, dict):
        splits = [key for key, value in rows.items() if isinstance(value, list)]
        found = [key for key in splits if key.lower() == split.lower()]
        if len(found) != 1:
            raise ValueError(
                f"{name}: one list called {split!r} wanted, in any case; the lists there: {splits}"
            )
        rows, name = rows[found[0]], f"{name} [{found[0]}]"
    return Rows(_placed(rows, name, strict), name)


def _from_lines(path: Path) -> Iterator[dict | RowError]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                row = _parsed(line.rstrip(), "a JSON object", dict)
                if number == 1 and line.startswith(_UTF_16):
                    raise row.at(str(path), 0)  # nothing that follows can be read either
                yield (
                    RowError(f"line {number}: {row.problem}") if isinstance(row, RowError) else row
                )


def _from_parquet(path: Path) -> Iterator[dict | RowError]:
    try:
        for batch in pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=1024):
            yield from _listed(batch)
    except (pyarrow.ArrowException, OSError) as error:
        raise RowError(f"not a parquet file that can be read: {error}", source=str(path)) from error


def _listed(batch: pyarrow.RecordBatch) -> list[dict | RowError]:
    try:
        return batch.to_pylist()
    except (
        ValueError,
        OverflowError,
    ) as error:  # text that is not UTF-8, a date of a year that Python has not
        if len(batch) == 1:
            return [RowError(f"not readable: {error}")]
        return [row for i in range(len(batch)) for row in _listed(batch.slice(i, 1))]


def _placed(rows: Iterable, source: str, strict: bool) -> Iterator[dict | RowError]:
    """The rows; in the place of what is none, an error that says where it stands, or that is raised if `strict`."""
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            problem = (
                row.problem
                if isinstance(row, RowError)
                else f"a JSON object wanted, got {type(row).__name__}"
            )
            row = RowError(problem, source=source, row=i)
            if strict:
                raise row
        yield row


def _parsed(content: bytes, wanted: str, *kinds: type) -> list | dict | RowError:
    """The value of a JSON text, if it is of the kinds that `wanted` describes; else the error that it stands for."""
    if content.startswith(_UTF_16):
        return RowError("UTF-16 text, by its byte order mark; save the file as UTF-8")
    try:
        value = json.loads(content.decode("utf-8-sig"))
        if isinstance(value, kinds):
            return value
        problem = f"{wanted} wanted, got {type(value).__name__}"
    except UnicodeDecodeError as error:
        problem = (
            f"not UTF-8 text: {error.reason} at byte {error.start + 1}; save the file as UTF-8"
        )
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        problem = f"not valid JSON: {error.msg}, at {line}column {error.colno}"
    except RecursionError:
        problem = "JSON that is nested too deeply to be read"
    except ValueError as error:
        problem = f"JSON that cannot be read: {error}"  # a number of more than 4,300 digits
    return RowError(problem)


def _exactly(value: object) -> str:
    """For json.dumps: what writes out in full and the same in every process."""
    if isinstance(value, _EXACT_BY_REPR):
        return repr(value)
    raise TypeError(f"{type(value).__name__} has no exact text")


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"{path} {hashlib.file_digest(file, 'blake2b').hexdigest()}"
