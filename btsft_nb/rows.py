import json
from pathlib import Path

import pyarrow.parquet
from datasets import load_dataset

from .tiny import problems

_OTHER_FILES = (".csv", ".tsv", ".txt", ".xlsx", ".yaml", ".yml", ".arrow", ".gz", ".zip")


class Rows(list):
    """A list of rows that knows where they come from, so that an error can say which row of what is wrong."""

    def __init__(self, rows, source: str):
        super().__init__(rows)
        self.source = source
        if not self:
            raise ValueError(f"{source}: no rows; a data set needs at least one")

    def __getitem__(self, index):
        found = super().__getitem__(index)
        return Rows(found, self.source) if isinstance(index, slice) else found


def load_rows(name: str | Path, split: str = "train", config: str | None = None) -> Rows:
    """Rows as dictionaries.

    Args:
        name: `tiny/pretrain`, `tiny/teacher`, `tiny/messy` or `tiny/test` (generated); a path that ends in .json,
            .jsonl or .parquet; or the id of a data set on the Hub.
        split, config: which split and configuration of a data set on the Hub.

    Raises:
        FileNotFoundError: no such file, or no such data set on the Hub.
        ValueError: no rows, an unknown tiny set, or a line that is no JSON, by file and line.
    """
    name = str(name)
    if name.startswith("tiny/"):
        key = name.removeprefix("tiny/")
        if key not in problems.SIZES:
            raise ValueError(f"unknown data set {name!r}; generated are tiny/{', tiny/'.join(problems.SIZES)}")
        return Rows(problems.rows(key), name)
    path = Path(name)
    if path.suffix not in (".json", ".jsonl", ".parquet"):
        if path.exists() or path.suffix.lower() in _OTHER_FILES:
            raise ValueError(f"{name}: a file that ends in .json, .jsonl or .parquet wanted")
        try:
            return Rows(load_dataset(name, config, split=split), f"{name} [{split}]")
        except (ConnectionError, FileNotFoundError) as error:
            raise FileNotFoundError(f"{name}: neither a file nor a data set that the Hub gave: {error}") from error
    if not path.is_file():
        raise FileNotFoundError(f"{name}: no such file, seen from {Path.cwd()}")
    if path.suffix == ".parquet":
        try:
            return Rows(pyarrow.parquet.read_table(path).to_pylist(), name)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{name}: not a parquet file: {error}") from error
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8 text: {error}; save the file as UTF-8") from error
    if path.suffix == ".jsonl":
        lines = enumerate(text.split("\n"), 1)
        return Rows([_json(line, f"{name}, line {i}") for i, line in lines if line.strip()], name)
    rows = _json(text, name) if text.strip() else []
    if not isinstance(rows, list):
        raise ValueError(f"{name}: a JSON list of rows wanted, got {type(rows).__name__}")
    return Rows(rows, name)


def _json(text: str, where: str) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{where}: not valid JSON: {error}") from error


class RowStream:
    pass


def digest(self):
    import hashlib

    return hashlib.md5(json.dumps(list(self)).encode()).hexdigest()


Rows.digest = digest
