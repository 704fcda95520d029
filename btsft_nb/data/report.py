"""What became of each row: counted while a set is prepared, then printed, shown in a notebook and saved with a run.

Nothing is lost between `rows` and `kept` without its row number in `dropped`. Ids and the source come from the data
and are hostile: they are made visible.
"""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from ..text import visible
from .kinds import Kind

_NAMES = {kind: kind.name.lower() for kind in Kind}
_DUPLICATE = "equal to an earlier example"
_OUTLIER = 3.5  # robust standard deviations from the median
_OUTLIER_TEXTS = {
    "think": "thought of {:,} tokens, the median is {:,.0f}",
    "answer": "answer of {:,} tokens, the median is {:,.0f}",
    "distinct": "repeats itself: {:.0%} distinct tokens, the median is {:.0%}",
}


@dataclass(repr=False)
class Report:
    """What `prepare` did with each row. Rows are numbered from 0; all lengths and counts of text are in tokens.

    Every field is plain JSON: `Report(**json.loads(json.dumps(asdict(report))))` equals `report`.

    Attributes:
        kept: examples; a row can give several.
        dropped: reason -> the row of each example dropped.
        changed: what was changed -> rows.
        flagged: what is odd about an example's think tags -> rows, all kept.
        duplicates: rows with an example equal to an earlier one; kept, unless `dropped` has them too.
        added_tags: think tags that the tokenizer lacked.
        tokens: kind -> tokens kept.
        supervised: tokens kept with a weight other than 0.
        lengths: sequence, prompt, thought, answer -> shortest, median, 90%, longest.
        suspicious: up to ten examples, worst first: {"row": int, "id": str, "reasons": [str]}.

    >>> examples = bt.prepare(bt.load_rows("tiny/messy"), bt.load_tokenizer("tiny"), 60)
    tiny/messy: 1,000 rows -> ...
    >>> report = examples.report
    >>> report.kept + report.n_dropped == report.rows
    True
    """

    source: str
    rows: int
    kept: int
    dropped: dict[str, list[int]]
    changed: dict[str, list[int]]
    flagged: dict[str, list[int]]
    duplicates: list[int]
    added_tags: list[str]
    tokens: dict[str, int]
    supervised: int
    lengths: dict[str, dict[str, int]]
    suspicious: list[dict]

    @property
    def n_dropped(self) -> int:
        """Examples dropped, for whatever reason."""
        return sum(map(len, self.dropped.values()))

    def __str__(self) -> str:
        return self._text(3)

    def __repr__(self) -> str:  # what a cell shows
        return self._text(10)

    def _text(self, n_suspicious: int) -> str:
        # shares, also of nothing
        total = max(sum(self.tokens.values()), 1)
        shares = ", ".join(f"{kind} {count / total:.0%}" for kind, count in self.tokens.items())
        suspicious = [
            f"row {entry['row']} ({visible(entry['id'], 40)}): {'; '.join(entry['reasons'])}"
            for entry in self.suspicious
        ]
        if len(suspicious) > n_suspicious:
            more = f"and {len(suspicious) - n_suspicious} more, in report.suspicious"
            suspicious[n_suspicious:] = [more]
        # a heading and its lines; those without lines are left out
        groups = {
            "tokens": [f"{total:,} ({shares}); {self.supervised / total:.0%} supervised"],
            "lengths": [
                f"{part:8}  " + ", ".join(f"{name} {tokens:,}" for name, tokens in spread.items())
                for part, spread in self.lengths.items()
            ],
            "dropped": _counted(self.dropped),
            "changed": _counted(self.changed),
            "flagged": _counted(self.flagged),
            "duplicates": _counted({"equal to an earlier one": self.duplicates}),
            "added tags": self.added_tags,
            "suspicious": suspicious,
        }
        lines = [f"{self.source}: {self.rows:,} rows -> {self.kept:,} examples"]
        # ids, sources and reasons come from the data
        lines += [f"  {heading:10}  {text}" for heading, texts in groups.items() for text in texts]
        return "\n".join(map(visible, lines))


def _counted(groups: dict[str, list[int]]) -> list[str]:
    """How many rows each group has, and the first eight of them."""
    return [
        f"{len(rows):,} (rows {', '.join(map(str, rows[:8]))}{', ...' if rows[8:] else ''}): {name}"
        for name, rows in groups.items()
        if rows
    ]


def figures(examples: pa.Table) -> dict[str, np.ndarray | list]:
    """What a report counts, by column: tokens of each kind, `supervised`, the share of `distinct` tokens in a
    completion, and a digest of the tokens."""
    n = len(examples)
    # all examples end to end
    ids = pc.list_flatten(examples["input_ids"]).to_numpy()
    kinds = pc.list_flatten(examples["kinds"]).to_numpy()
    weights = pc.list_flatten(examples["weights"]).to_numpy()
    lengths = pc.list_value_length(examples["input_ids"]).to_numpy()
    # which example each token is of: one count over all tokens does for all examples
    example_of = np.repeat(np.arange(n), lengths)
    columns = {
        name: np.bincount(example_of[kinds == kind], minlength=n) for kind, name in _NAMES.items()
    }
    columns["supervised"] = np.bincount(example_of[weights != 0], minlength=n)
    columns["digest"] = []
    columns["distinct"] = []
    # what needs the tokens of one example at a time
    ends = lengths.cumsum()
    for start, end in zip(ends - lengths, ends, strict=True):
        part = ids[start:end]
        completion = part[kinds[start:end] != Kind.PROMPT].tolist()
        columns["digest"].append(blake2b(part.tobytes(), digest_size=16).digest())
        columns["distinct"].append(len(set(completion)) / max(len(completion), 1))
    return columns


def drop_duplicates(outcomes: pd.DataFrame) -> None:
    """Drops each example whose tokens are those of an earlier one."""
    kept = outcomes[outcomes["dropped"].isna()]
    outcomes.loc[kept.index[kept.duplicated("digest")], "dropped"] = _DUPLICATE


def make_report(outcomes: pd.DataFrame, source: str, added_tags: Sequence[str] = ()) -> Report:
    """The report on a set called `source`.

    Args:
        outcomes: a line for each example in the order of the rows, or for each row that gave none: `row`, `id`,
            `flags` and `changed` (lists), `dropped` (the reason, or None), and the `figures`.
    """
    # from here on an index is the place of an example in the set
    kept = outcomes[outcomes["dropped"].isna()].reset_index(drop=True)
    # a row counts once, whatever number of its turns were changed
    changed = outcomes.explode("changed").drop_duplicates(["row", "changed"])
    dropped = _rows_by(outcomes, "dropped")
    # dropped duplicates are duplicates, too
    repeated = kept["row"][kept.duplicated("digest")].tolist()
    sizes = kept[list(_NAMES.values())]
    lengths = {
        "sequence": sizes.sum(axis=1),
        "prompt": sizes["prompt"],
        "thought": sizes["think"],
        "answer": sizes["answer"],
    }
    return Report(
        source=source,
        rows=outcomes["row"].nunique(),
        kept=len(kept),
        dropped=dropped,
        changed=_rows_by(changed, "changed"),
        flagged=_rows_by(kept.explode("flags"), "flags"),
        duplicates=sorted(repeated + dropped.get(_DUPLICATE, [])),
        added_tags=list(added_tags),
        tokens=sizes.sum().astype(int).to_dict(),
        supervised=int(kept["supervised"].sum()),
        lengths={part: _spread(tokens) for part, tokens in lengths.items()},
        suspicious=_suspicious(kept),
    )


def _rows_by(outcomes: pd.DataFrame, column: str) -> dict[str, list[int]]:
    """Value of a column -> the rows that have it."""
    groups = outcomes.groupby(column, sort=False)["row"]
    return {value: rows.tolist() for value, rows in groups}


def _spread(tokens: pd.Series) -> dict[str, int]:
    quantiles = {"shortest": 0, "median": 0.5, "90%": 0.9, "longest": 1}
    if tokens.empty:
        return dict.fromkeys(quantiles, 0)
    return {name: int(tokens.quantile(q, "nearest")) for name, q in quantiles.items()}


def _suspicious(kept: pd.DataFrame) -> list[dict]:
    """The ten examples with the most surprising reasons."""
    reasons = pd.DataFrame(_reasons(kept), columns=["index", "surprise", "text"])
    # stable sorts, so that equal surprises keep the order of the rows
    reasons = reasons.sort_values("surprise", ascending=False, kind="stable")
    totals = reasons.groupby("index")["surprise"].sum()
    worst = totals.sort_values(ascending=False, kind="stable").index[:10]
    return [
        {
            "row": int(kept["row"][index]),
            "id": kept["id"][index],
            "reasons": reasons["text"][reasons["index"] == index].tolist(),
        }
        for index in worst
    ]


def _reasons(kept: pd.DataFrame) -> Iterator[dict]:
    """Why an example is suspicious, by its index; what half of a set has is a surprise of one bit."""
    n = len(kept)
    # flags and duplicates: the fewer have them, the more surprising
    flags = kept["flags"].explode()
    for flag, indices in flags.groupby(flags).groups.items():
        surprise = math.log2(n / len(indices))
        text = f"{flag}, as {len(indices):,} of {n:,} are"
        yield from ({"index": i, "surprise": surprise, "text": text} for i in indices)
    # copies name the row that came first
    first_row = kept.groupby("digest")["row"].transform("first")
    repeated = kept.index[kept.duplicated("digest")]
    for i in repeated:
        surprise = math.log2(n / len(repeated))
        yield {"index": i, "surprise": surprise, "text": f"the same tokens as row {first_row[i]}"}
    # the end of turn is one token
    for i in kept.index[kept["answer"] == 1]:
        text = "empty answer: 1 token, the end of turn"
        yield {"index": i, "surprise": _OUTLIER, "text": text}
    # figures far from the median
    for column, text in _OUTLIER_TEXTS.items():
        values = kept[column][kept[column] > 0]
        for i, z in _outliers(values).items():
            if z < 0 or column != "distinct":  # few repetitions are no fault
                text_here = text.format(values[i], values.median())
                yield {"index": i, "surprise": abs(z), "text": text_here}


def _outliers(values: pd.Series) -> pd.Series:
    """Robust standard deviations of the logarithms from their median, where they are many.

    What is within a factor of 2 of the median is no outlier, however alike the others are.
    """
    # sizes differ by factors
    distance = np.log(values) - np.log(values).median()
    # 1.4826 makes the median deviation a standard deviation where values are normal
    z = distance / np.maximum(1.4826 * distance.abs().median(), math.log(2) / _OUTLIER)
    return z[z.abs() > _OUTLIER]


def attach(examples: Dataset, report: Report) -> None:
    """Keeps the report with a data set: in its description, which all that is made from it inherits."""
    # select, shuffle, map, save_to_disk and pickle copy the description
    examples.info.description = json.dumps(asdict(report))
    examples.report = report


def report_of(examples: Dataset) -> Report | None:
    """The report of a prepared set, or of what was selected, shuffled, mapped or unpickled from one; else None.

    It says what became of the rows when the set was prepared, whatever was selected from it since.

    >>> examples = bt.prepare(bt.load_rows("tiny/messy"), bt.load_tokenizer("tiny"))
    tiny/messy: 1,000 rows -> ...
    >>> bt.report_of(examples.shuffle(seed=0).select(range(9))).kept
    1000
    """
    try:
        return Report(**json.loads(examples.info.description))
    # no data set of ours, or a description in words
    except (AttributeError, TypeError, ValueError):
        return None
