"""Rows -> prepared examples and a report of what became of every row; sets mixed, and compared."""

import json
import os
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import multiprocess
import pyarrow as pa
from datasets import Dataset, IterableDataset, concatenate_datasets
from datasets import config as datasets_config
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase

from .fit import TOO_LONG, PromptFrame, fit
from .formats import to_messages
from .kinds import Kind
from .messages import RowError, UnsuitableRow
from .render import Renderer
from .report import Report, Tally
from .rows import Rows, RowStream
from .tokens import add_tags
from .weights import Weighting

_CHUNK = 256  # rows that are tokenized at once
_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "input_ids": pa.list_(pa.int32()),
        "weights": pa.list_(pa.float32()),
        "kinds": pa.list_(pa.int8()),
        "tags": pa.list_(pa.struct({"tag": pa.string(), "start": pa.int32(), "stop": pa.int32()})),
        "flags": pa.list_(pa.string()),
    }
)


def prepare(
    rows: Iterable[dict],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int = 1024,
    *,
    format: str | dict[str, str] | Callable[[dict], dict] | None = None,
    weights: dict | Callable | None = None,
    response_marker: str | None = None,
    too_long: str = "drop",
    duplicates: str = "keep",
    strict: bool = True,
    num_proc: int = 1,
    cache: bool = True,
) -> Dataset:
    """Rows -> a data set with the fields of `Example`: one for each row, or one for each of its turns.

    The examples are written to disk while they are made and read from there, so neither they nor a stream of rows have
    to fit into memory. What is dropped or changed is counted, with its row numbers, in the report: it is printed and
    stays with the data set as `examples.report`. Think tags that the tokenizer splits are added to it.

    Args:
        rows: dictionaries, best from `load_rows`, which knows their source.
        max_length: tokens an example may have. too_long: what happens to those that have more, see `fit`.
        format: which layout the rows have, where their fields leave that open; see `to_messages`.
        weights: what tokens weigh beside what the rows say; see `Weighting`.
        response_marker: of rows that hold formatted text, what stands before each completion; see `Renderer`.
        duplicates: `keep` or `drop` examples whose tokens are those of an earlier one; they are reported either way.
        strict: whether a malformed row is an error; else it is dropped and counted.
        num_proc: processes that share the rows.
        cache: whether to take the examples from an earlier call with the same rows, tokenizer and settings, and to
            keep them for a later one. The blur is no part of them.

    Raises:
        RowError: a malformed row, by source, row and field.
        ValueError: a wrong setting, a tokenizer without a chat template, or nothing left to train on.
    """
    for name, value, known in (
        ("too_long", too_long, TOO_LONG),
        ("duplicates", duplicates, ("keep", "drop")),
    ):
        if value not in known:
            raise ValueError(f"{name}={value!r}: one of {', '.join(known)} wanted")
    if not isinstance(given := rows, (Rows, RowStream)):
        on_disk = isinstance(rows, (Dataset, IterableDataset))
        rows = (
            RowStream(lambda: iter(given), "rows", lambda: None) if on_disk else Rows(given, "rows")
        )
    added = add_tags(tokenizer)
    make = _Make(
        rows.source, tokenizer, max_length, format, weights, response_marker, too_long, strict
    )
    folder = _cache_folder(rows, make, duplicates) if cache else None
    where = folder
    if folder is None or not (folder / "report.json").is_file():
        where = _made(rows, make, duplicates, num_proc, added, folder)
    examples = Dataset.from_file(str(where / "examples.arrow"))
    examples.report = Report(**json.loads((where / "report.json").read_text(encoding="utf-8")))
    if folder is None:
        weakref.finalize(examples, shutil.rmtree, where, ignore_errors=True)
    print(examples.report)
    return examples


class _Make:
    """Numbered rows -> a table of examples, and a tally of what became of the rows."""

    def __init__(
        self, source, tokenizer, max_length, format, weights, response_marker, too_long, strict
    ):
        self.source, self.max_length, self.format = source, max_length, format
        self.too_long, self.strict, self.weighting = too_long, strict, Weighting(weights)
        self.renderer = Renderer(
            tokenizer, kind_weights=self.weighting.factors, response_marker=response_marker
        )
        self.frame = PromptFrame(self.renderer) if too_long == "shorten_prompt" else None
        self.settings = (
            source,
            max_length,
            format,
            weights,
            response_marker,
            too_long,
            strict,
            self.renderer.tags,
        )

    def __call__(self, rows: list[tuple[int, object]]) -> tuple[pa.Table, Tally]:
        tally, drafts, numbers = Tally(), [], []
        for i, row in rows:
            try:
                found = self._drafts(i, row, tally)
            except UnsuitableRow as error:
                tally.drop(i, str(error))
                continue
            except RowError as error:
                if self.strict:
                    raise error.at(self.source, i) from None
                tally.drop(i, f"malformed: {error.field.partition('[')[0] or 'the row'}")
                continue
            drafts += found
            numbers += [i] * len(found)
        kept = []
        for i, example in zip(numbers, self.renderer.tokenize(drafts), strict=True):
            example, what = fit(example, self.max_length, self.too_long, self.frame)
            if example is None:
                tally.drop(i, what)
            elif not any(example.weights):
                tally.drop(i, "every weight is 0")
            else:
                if what:
                    tally.change(i, what)
                tally.add(i, example)
                kept.append(example)
        return pa.Table.from_pylist([vars(example) for example in kept], schema=_SCHEMA), tally

    def _drafts(self, i: int, row: object, tally: Tally) -> list:
        if isinstance(row, RowError):  # a line that could not be read
            raise row
        messages = self.weighting.apply(to_messages(row, self.format), row)
        drafts = self.renderer.drafts(messages, str(row.get("id") or f"{self.source}#{i}"))
        for message in messages:
            if message.changed:
                tally.change(i, message.changed)
        return drafts


def _cache_folder(rows: Rows | RowStream, make: _Make, duplicates: str) -> Path | None:
    """Where the examples of these rows and settings are kept; None where the content cannot be told by a hash."""
    digest = rows.digest()
    if digest is None:
        return None
    own = [
        path.read_bytes() for path in sorted(Path(__file__).parents[1].rglob("*.py"))
    ]  # other code, other examples
    tokenizer = make.renderer.tokenizer
    said = (
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.chat_template,
        tokenizer.special_tokens_map,
    )
    said += (make.renderer.template.probe,)  # which can hold today's date
    key = Hasher.hash((digest, said, make.settings, duplicates, own))
    folder = Path(datasets_config.HF_DATASETS_CACHE) / "btsft_nb"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / key


def _made(
    rows: Rows | RowStream,
    make: _Make,
    duplicates: str,
    num_proc: int,
    added: list[str],
    folder: Path | None,
) -> Path:
    """Writes examples and report; in one step into `folder`, so that no other process sees half of them."""
    made = Path(tempfile.mkdtemp(prefix="btsft_", dir=folder and folder.parent))
    try:
        _write(made, rows, make, duplicates, num_proc, added)
        if folder is None:
            return made
        made.rename(folder)
    except BaseException as error:
        shutil.rmtree(made)
        if not (isinstance(error, OSError) and folder and (folder / "report.json").is_file()):
            raise  # else another process was faster
    return folder


def _write(
    folder: Path,
    rows: Rows | RowStream,
    make: _Make,
    duplicates: str,
    num_proc: int,
    added: list[str],
) -> None:
    total, numbered = Tally(), enumerate(rows)
    chunks = iter(lambda: list(islice(numbered, _CHUNK)), [])
    with (
        pa.OSFile(str(folder / "examples.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, _SCHEMA) as writer,
    ):
        for table, tally in _parts(make, chunks, num_proc):
            kept = total.merge(tally, drop_duplicates=duplicates == "drop")
            writer.write_table(table.filter(pa.array(kept, pa.bool_())))
    report = total.report(make.source, added)
    if not report.kept:
        reasons = "; ".join(
            f"{len(numbers)} {reason}" for reason, numbers in report.dropped.items()
        )
        raise ValueError(
            f"{make.source}: nothing left to train on: {reasons}; look at the rows, or raise max_length"
        )
    (folder / "report.json").write_text(json.dumps(asdict(report)), encoding="utf-8")


def _parts(make: _Make, chunks: Iterator[list], num_proc: int) -> Iterator[tuple[pa.Table, Tally]]:
    """What `make` makes of each chunk, in their order, in `num_proc` processes."""
    if num_proc == 1:
        yield from map(make, chunks)
        return
    with multiprocess.Pool(num_proc, _start, (make,)) as pool:
        while some := list(
            islice(chunks, 6 * num_proc)
        ):  # a pool reads ahead without end; a stream may be too large
            yield from pool.imap(_work, some)


def _start(make: _Make) -> None:
    global _make
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # each process has a core of its own
    _make = make


def _work(chunk: list) -> tuple[pa.Table, Tally]:
    return _make(chunk)


def overlap(examples: Dataset, others: Dataset) -> list[tuple[str, str]]:
    """The examples whose prompt, token by token, is also in another set: pairs of the ids here and there.

    Test questions that are in the training set too measure memory, not skill.
    """

    def prompts(data: Dataset) -> Iterator[tuple[bytes, str]]:
        for example in data.with_format("numpy"):
            yield (
                example["input_ids"][example["kinds"] == Kind.PROMPT].tobytes(),
                str(example["id"]),
            )

    known = dict(prompts(others))
    return [(name, known[prompt]) for prompt, name in prompts(examples) if prompt in known]


def mix(sets: list[Dataset], proportions: list[float], *, seed: int = 0) -> Dataset:
    """Prepared sets, shuffled into one that holds them in the given proportions.

    Each example is in it once at most: the set that runs out first limits the size. Ids stay, and so does the blur.

    Raises ValueError where there is not one positive proportion for each set, or two examples share an id.
    """
    if len(sets) != len(proportions) or not sets or not all(share > 0 for share in proportions):
        raise ValueError(
            f"{len(sets)} sets and proportions={proportions}: one positive number for each set wanted"
        )
    size = min(len(data) / share for data, share in zip(sets, proportions, strict=True))
    counts = [max(int(size * share + 1e-9), 1) for share in proportions]
    parts = [data.shuffle(seed=seed).select(range(n)) for data, n in zip(sets, counts, strict=True)]
    mixed = concatenate_datasets(parts).shuffle(seed=seed)
    ids = mixed["id"]
    if len(set(ids)) < len(ids):
        twice = next(name for name, count in Counter(ids).items() if count > 1)
        raise ValueError(
            f"the id {twice!r} stands for several examples; give the rows ids of their own"
        )
    return mixed
