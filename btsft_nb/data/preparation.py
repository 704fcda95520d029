"""Rows -> prepared examples, and a report of what became of every row.

The pool of processes, the files and their cache are those of `datasets`. Prepared sets stay in its cache folder under
btsft_nb/ until no call of `prepare` has used them for 30 days; those without a key (`cache=False`, rows from elsewhere
than a file or memory) in its folder for the session.
"""

import json
import logging
import os
import pickle
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from uuid import uuid4

import datasets
import pyarrow as pa
from transformers import PreTrainedTokenizerBase

from ..checks import check_choice
from .errors import RowError, UnsuitableRow
from .fit import POLICIES, PromptFrame, fit
from .formats import Format, to_messages
from .render import Renderer
from .report import drop_duplicates, figures, make_report, show
from .rows import Rows
from .tokens import add_tags
from .weights import cut_at_spans, kind_factors

CACHE_VERSION = 1  # raise it when the same rows and settings come to make other examples
# the six columns of an example, and what became of its row; the figures of the report come after these
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
) -> datasets.Dataset:
    """Rows -> a data set with the fields of `Example`: one for each row, or one for each of its turns.

    Rows and examples go through files, so neither they nor a stream of rows have to fit into memory. What is dropped
    or changed is counted, with its row numbers, in the report: it is printed, is `examples.report`, and `report_of`
    finds it for whatever is made from the set. Think tags that the tokenizer splits are added to it.

    Args:
        rows: dictionaries that pickle can write, best from `load_rows`, which knows their source.
        max_length: tokens an example may have.
        format: which layout the rows have, where their fields leave that open; see `to_messages`.
        weights: what tokens weigh beside what the rows say: a dictionary from `tag`, `think` or `answer` to a factor;
            or a function (row, text of a turn) -> (start, stop, weight) or (start, stop, weight, tag) of its
            characters. Where these overlap the later one counts.
        response_marker: of rows that hold formatted text, what stands before each completion.
        too_long: what happens to longer examples: "drop"; "shorten" their thoughts; or "shorten_prompt".
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
    check_choice("too_long", too_long, POLICIES)
    check_choice("duplicates", duplicates, ("keep", "drop"))
    if not isinstance(rows, Rows):
        rows = Rows(rows if isinstance(rows, (list, tuple)) else partial(iter, rows), "rows")
    added_tags = add_tags(tokenizer)
    factors = kind_factors(weights)
    renderer = Renderer(tokenizer, kind_weights=factors, response_marker=response_marker)
    frame = PromptFrame(renderer) if too_long == "shorten_prompt" else None
    settings = [max_length, format, weights, too_long, strict]
    maker = _Maker(renderer, frame, rows.source, rows.name, *settings)
    lines = _made(rows, maker, num_proc, _key(rows, renderer, settings) if cache else None)
    # all but the tokens is in memory from here on
    outcomes = lines.remove_columns(["input_ids", "weights", "kinds", "tags"]).to_pandas()
    if duplicates == "drop":
        drop_duplicates(outcomes)
    report = make_report(outcomes, rows.source, added_tags)
    if not report.kept:
        raise ValueError(f"nothing left to train on; raise max_length?\n{report}")
    kept = outcomes.index[outcomes["dropped"].isna()]  # other lines stay in the file alone
    examples = lines.select(kept).select_columns(_LINE.names[:6])
    examples.info.description = json.dumps(asdict(report))  # select, map and pickle copy it
    examples.report = report
    if print_report:
        show(report)
    return examples


@dataclass
class _Maker:
    """Pickled rows and their numbers -> a table with a line for each example, or for each row that gives none."""

    renderer: Renderer
    frame: PromptFrame | None
    source: str  # for errors
    name: str  # for ids
    max_length: int
    format: Format
    weights: object
    too_long: str
    strict: bool

    def __getstate__(self):
        # the pool of datasets pickles by dill, which takes 2 s for a vocabulary of 150,000 tokens
        return {**vars(self), "renderer": pickle.dumps(self.renderer)}

    def __setstate__(self, state):
        vars(self).update(state, renderer=pickle.loads(state["renderer"]))

    def __call__(self, batch, numbers):
        lines = []
        refused = []
        drafts = []
        for number, pickled in zip(numbers, batch["row"], strict=True):
            try:
                row = pickle.loads(pickled)
                if isinstance(row, RowError):  # a line of a file that could not be read
                    raise row
                messages = to_messages(row, self.format)
                if callable(self.weights):
                    messages = [cut_at_spans(turn, self.weights, row) for turn in messages]
                example_id = str(row.get("id") or f"{self.name}#{number}")
                made = self.renderer.drafts(messages, example_id)
            except UnsuitableRow as error:
                refused.append({"row": number, "dropped": str(error)})
            except RowError as error:
                if self.strict:
                    raise error.at(self.source, number) from None
                field = error.field.partition("[")[0] or "the row"
                refused.append({"row": number, "dropped": f"malformed: {field}"})
            else:
                drafts += made
                # a row can give several examples, one for each of its turns
                changed = [message.changed for message in messages if message.changed]
                lines += [{"row": number, "changed": changed} for _ in made]
        # all drafts of the batch are tokenized together, which is faster
        for line, example in zip(lines, self.renderer.tokenize(drafts), strict=True):
            example, change = fit(example, self.max_length, self.too_long, self.frame)
            if example and any(example.weights):
                line |= vars(example)
                line["changed"] = [*line["changed"], *filter(None, [change])]
            else:
                line["dropped"] = "every weight is 0" if example else change
        table = pa.Table.from_pylist(lines + refused, _LINE)
        # counted here, so that the processes share the work and the cache has the result
        for name, values in figures(table).items():
            table = table.append_column(name, pa.array(values))
        return table


def _key(rows, renderer, settings):
    """What the lines are kept under; None where rows or settings cannot be told by a hash."""
    tokenizer = renderer.tokenizer
    # all that can change a token, a weight or an id; neither the source nor what is done to duplicates
    parts = [
        tokenizer.backend_tokenizer.to_str(),
        tokenizer.special_tokens_map,
        tokenizer.chat_template,
        renderer.template.probe,  # which can hold today's date
        renderer.tags,
        renderer.response_marker,
    ]
    try:
        return datasets.fingerprint.Hasher.hash([CACHE_VERSION, rows.digest(), settings, parts])
    except Exception as error:  # rows and functions can hold anything
        logging.getLogger(__name__).warning("not cached: %s", error)


def _sweep(folder, used):
    """Deletes what no call has used for 30 days from the cache's folder; what this call used counts as new."""
    # a file can be another user's, held by another process, or gone since
    for file in used.cache_files:
        with suppress(OSError):
            os.utime(file["filename"])
    for path in folder.glob("*.arrow"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > 30 * 24 * 3600:
                path.unlink()


def _made(rows, maker, num_proc, key):
    """What `maker` makes of all rows, or made of them before."""
    # the rows, from which each process reads its share; without a key the lines lie beside them, for this session
    folder = datasets.fingerprint.get_temporary_cache_files_directory()
    spool = Path(folder, f"{uuid4().hex}.arrow")
    file = Path(datasets.config.HF_DATASETS_CACHE, "btsft_nb", f"{key}.arrow")
    # a bar is a widget in a notebook, and is saved with it
    shows_progress = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        # no two rows need have the same fields, so that they are bytes to Arrow
        schema = pa.schema({"row": pa.binary()})
        with datasets.arrow_writer.ArrowWriter(schema, path=str(spool)) as writer:
            for row in rows:
                writer.write({"row": pickle.dumps(row)})
            n_rows, _ = writer.finalize()
        if not n_rows:
            raise ValueError(f"{rows.source}: no rows")
        # datasets writes to a temporary file and moves it when it is whole, so nothing half-made is ever found
        made = datasets.Dataset.from_file(str(spool)).map(
            maker,
            with_indices=True,
            batched=True,
            batch_size=256,
            remove_columns="row",
            num_proc=num_proc if num_proc > 1 else None,  # 1 would be a process, too
            new_fingerprint=key or spool.stem,
            cache_file_name=str(file) if key else None,
        )
    finally:
        if shows_progress:
            datasets.enable_progress_bars()
        with suppress(OSError):  # Windows keeps a file that is open until the session ends
            spool.unlink()
    _sweep(file.parent, made)
    return made
