"""Rows -> prepared examples, and a report of what became of every row.

The pool of processes, the files and their cache are those of `datasets`. Prepared sets lie in its cache folder under
btsft_nb/, or, where `cache=False` or the rows have no digest, in its folder for the session. What was not used for 30
days is deleted from the first.
"""

import logging
import pickle
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import datasets
import pyarrow as pa
from datasets import Dataset, IterableDataset
from datasets.arrow_writer import ArrowWriter
from datasets.fingerprint import (
    Hasher,
    generate_random_fingerprint,
    get_temporary_cache_files_directory,
)
from transformers import PreTrainedTokenizerBase

from .errors import RowError, UnsuitableRow
from .fit import POLICIES, PromptFrame, fit
from .formats import Format, to_messages
from .render import Example, Renderer
from .report import attach, drop_duplicates, figures, make_report
from .rows import Rows
from .tokens import add_tags
from .weights import Weighting

CACHE_VERSION = 1  # raise it when the same rows and settings come to make other examples
_BATCH = 256  # rows that are tokenized at once
_UNUSED_DAYS = 30
# the columns of a line that has no example
_NOTHING = vars(Example("", [], [], []))
# an example, and what became of its row; the figures of the report come after these
_LINE = pa.schema(
    {
        "id": pa.string(),
        "input_ids": pa.list_(pa.int32()),
        "weights": pa.list_(pa.float32()),
        "kinds": pa.list_(pa.int8()),
        "flags": pa.list_(pa.string()),
        "tags": pa.list_(pa.struct({"tag": pa.string(), "start": pa.int32(), "stop": pa.int32()})),
        "row": pa.int64(),
        "dropped": pa.string(),
        "changed": pa.list_(pa.string()),
    }
)


def prepare(
    rows: Iterable[dict],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int = 1024,
    *,
    format: Format = None,
    weights: dict | Callable | None = None,
    response_marker: str | None = None,
    too_long: str = "drop",
    duplicates: str = "keep",
    strict: bool = True,
    num_proc: int = 1,
    cache: bool = True,
    print_report: bool = True,
) -> Dataset:
    """Rows -> a data set with the fields of `Example`: one for each row, or one for each of its turns.

    Rows and examples go through files, so neither they nor a stream of rows have to fit into memory. What is dropped
    or changed is counted, with its row numbers, in the report: it is printed, is `examples.report`, and `report_of`
    finds it for whatever is made from the set. Think tags that the tokenizer splits are added to it.

    Args:
        rows: dictionaries, best from `load_rows`, which knows their source.
        max_length: tokens an example may have.
        format: which layout the rows have, where their fields leave that open; see `to_messages`.
        weights: what tokens weigh beside what the rows say: a dictionary from `tag`, `think` or `answer` to a factor,
            or from a compiled regular expression to the weight of the text that it matches in an assistant turn; or a
            function (row, text of a turn) -> (start, stop, weight) or (start, stop, weight, tag) of its characters.
        response_marker: of rows that hold formatted text, what stands before each completion.
        too_long: what happens to longer examples: "drop"; "shorten" their thoughts; "shorten_prompt"; "keep_first"
            or "keep_last" tokens.
        duplicates: "keep" or "drop" examples whose tokens are those of an earlier one; they are reported either way.
        strict: whether a malformed row is an error; else it is dropped and counted.
        num_proc: processes that share the rows.
        cache: whether to take the examples from an earlier call with the same rows, tokenizer and settings, and to
            keep them for a later one. The blur is no part of them.
        print_report: whether the report is printed.

    Raises:
        RowError: a malformed row, by source, row and field.
        ValueError: a wrong setting, a tokenizer without a chat template, or nothing left to train on.

    >>> rows = [{"question": "2+3?", "answer": "<think>2+3=5</think>5", "id": "a"}]
    >>> examples = bt.prepare(rows, bt.load_tokenizer("tiny"), 64)
    rows: 1 rows -> 1 examples...
    >>> examples["id"][0], examples.report.tokens["tag"]
    ('a', 2)
    """
    if too_long not in POLICIES:
        raise ValueError(f"too_long must be one of {', '.join(POLICIES)}, got {too_long!r}")
    if duplicates not in ("keep", "drop"):
        raise ValueError(f"duplicates must be keep or drop, got {duplicates!r}")
    if not isinstance(rows, Rows):
        # data sets are read as they come, from disk or elsewhere
        is_data_set = isinstance(rows, (Dataset, IterableDataset))
        rows = Rows(rows.__iter__ if is_data_set else rows, "rows")
    added_tags = add_tags(tokenizer)
    settings = (max_length, format, weights, response_marker, too_long, strict)
    maker = _Maker(tokenizer, rows.source, rows.name, *settings)
    lines = _made(rows, maker, num_proc, _key(rows, maker) if cache else None)
    # all but the tokens is in memory from here on
    frame = lines.remove_columns(["input_ids", "weights", "kinds", "tags"]).to_pandas()
    # decided here, over all rows, since no process sees more than its share
    if duplicates == "drop":
        drop_duplicates(frame)
    report = make_report(frame, rows.source, added_tags)
    if not report.kept:
        reasons = "; ".join(f"{len(rows)} {reason}" for reason, rows in report.dropped.items())
        raise ValueError(f"{report.source}: nothing left to train on: {reasons}; raise max_length?")
    # lines of rows that gave nothing stay in the file, and out of the set
    examples = lines.select(frame.index[frame["dropped"].isna()]).select_columns(list(_NOTHING))
    attach(examples, report)
    if print_report:
        print(report)
    return examples


@dataclass
class _Maker:
    """Pickled rows and their numbers -> a table with a line for each example, or for each row that gives none."""

    tokenizer: PreTrainedTokenizerBase
    source: str  # for errors
    name: str  # for ids
    max_length: int
    format: Format
    weights: dict | Callable | None
    response_marker: str | None
    too_long: str
    strict: bool

    def __post_init__(self):
        self.weighting = Weighting(self.weights)
        self.renderer = Renderer(
            self.tokenizer,
            kind_weights=self.weighting.factors,
            response_marker=self.response_marker,
        )
        self.frame = PromptFrame(self.renderer) if self.too_long == "shorten_prompt" else None

    def __call__(self, batch: dict[str, list[bytes]], numbers: list[int]) -> pa.Table:
        # rows to drafts: what a process does on its own
        lines = []
        refused = []
        drafts = []
        for number, pickled in zip(numbers, batch["row"], strict=True):
            try:
                row = pickle.loads(pickled)
                if isinstance(row, RowError):  # a line of a file that could not be read
                    raise row
                messages = self.weighting.apply(to_messages(row, self.format), row)
                example_id = str(row.get("id") or f"{self.name}#{number}")
                made = self.renderer.drafts(messages, example_id)
            except RowError as error:
                reason = str(error)
                if not isinstance(error, UnsuitableRow):
                    if self.strict:
                        raise error.at(self.source, number) from None
                    reason = f"malformed: {error.field.partition('[')[0] or 'the row'}"
                refused.append({"row": number, "dropped": reason})
                continue
            drafts += made
            # a row can give several examples, one for each of its turns
            changed = [message.changed for message in messages if message.changed]
            lines += [{"row": number, "changed": changed} for _ in made]
        # all drafts of the batch are tokenized together, which is faster
        for line, example in zip(lines, self.renderer.tokenize(drafts), strict=True):
            self._finish(line, example)
        table = pa.Table.from_pylist([_NOTHING | line for line in lines + refused], _LINE)
        # counted here, so that the processes share the work and the cache has the result
        for name, values in figures(table).items():
            table = table.append_column(name, pa.array(values))
        return table

    def _finish(self, line: dict, example: Example) -> None:
        """Puts an example into its line, or the reason why it is left out."""
        example, change = fit(example, self.max_length, self.too_long, self.frame)
        if example is None:
            line["dropped"] = change
        elif not any(example.weights):
            line["dropped"] = "every weight is 0"
        else:
            line |= vars(example)
            if change:
                line["changed"] = [*line["changed"], change]


def _key(rows: Rows, maker: _Maker) -> str | None:
    """What the lines are kept under; None where rows or settings cannot be told by a hash."""
    digest = rows.digest()
    if digest is None:
        return None
    tokenizer = maker.tokenizer
    # all that can change a token, a weight or an id; neither the source nor what is done to duplicates
    settings = [getattr(maker, field.name) for field in fields(maker)[2:]]
    text = tokenizer.backend_tokenizer.to_str()
    special = tokenizer.special_tokens_map
    probe = maker.renderer.template.probe  # which can hold today's date
    parts = [digest, settings, maker.renderer.tags, text, special, tokenizer.chat_template, probe]
    try:
        return Hasher.hash([CACHE_VERSION, *parts])
    except Exception as error:  # a function can hold anything
        logging.getLogger(__name__).warning("not cached, as a setting has no hash: %s", error)
        return None


def _made(rows: Rows, maker: _Maker, num_proc: int, key: str | None) -> Dataset:
    """What `maker` makes of all rows, or made of them before."""
    folder = Path(datasets.config.HF_DATASETS_CACHE, "btsft_nb")
    if key is None:  # for this session
        folder = Path(get_temporary_cache_files_directory())
        key = generate_random_fingerprint()
    # a bar is a widget in a notebook, and is saved with it
    shows_progress = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as spool:
            # datasets writes to a temporary file and moves it when it is whole, so nothing half-made is ever found
            made = _pickled(rows, Path(spool, "rows.arrow")).map(
                maker,
                with_indices=True,
                batched=True,
                batch_size=_BATCH,
                remove_columns="row",
                # None, since 1 would be a process, too
                num_proc=num_proc if num_proc > 1 else None,
                new_fingerprint=key,
                cache_file_name=str(folder / f"{key}.arrow"),
                load_from_cache_file=True,
            )
    finally:
        if shows_progress:
            datasets.enable_progress_bars()
    # what was used counts as new; what was not for long goes
    for file in made.cache_files:
        Path(file["filename"]).touch()
    for path in folder.glob("*.arrow"):
        if time.time() - path.stat().st_mtime > _UNUSED_DAYS * 24 * 3600:
            path.unlink(missing_ok=True)
    return made


def _pickled(rows: Rows, path: Path) -> Dataset:
    """Rows of any content in a file, from which each process reads its share."""
    features = datasets.Features(row=datasets.Value("binary"))
    with ArrowWriter(path=str(path), features=features) as writer:
        # no two rows need have the same fields, so that they are bytes to Arrow
        for row in rows:
            try:
                pickled = pickle.dumps(row)
            # a row can be nested too deeply, or hold an open file
            except (RecursionError, pickle.PicklingError, TypeError, AttributeError) as error:
                pickled = pickle.dumps(RowError(f"cannot be pickled: {error}"))
            writer.write({"row": pickled})
        n_rows, _ = writer.finalize()
    if not n_rows:
        raise ValueError(f"{rows.source}: no rows")
    return Dataset.from_file(str(path))
