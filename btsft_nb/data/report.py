"""What became of each row: counted while a set is prepared, then printed, shown in a notebook and saved with a run.

Nothing is lost between `rows` and `kept` without its row number in `dropped`. Ids and the source come from the data
and are hostile: they are made visible.
"""

import json
import reprlib
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from datasets import Dataset

from ..text import visible
from .kinds import Kind

_NAMES = [kind.name.lower() for kind in Kind]
_COPY = "equal to an earlier example"
_FAR = 3.5  # robust standard deviations from the median
_REASONS = {
    "think": "tokens of thought",
    "answer": "tokens of answer",
    "distinct": "as share of distinct tokens",
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
        suspicious: up to ten examples whose thought, answer or share of distinct tokens is far from the median, or
            whose answer is empty, worst first: {"row": int, "id": str, "reasons": [str]}. A print shows three.

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

    def __repr__(self):
        # shares, also of nothing
        total = max(sum(self.tokens.values()), 1)
        shares = ", ".join(f"{kind} {count / total:.0%}" for kind, count in self.tokens.items())
        # a heading and its lines; those without lines are left out
        groups = {
            "tokens": [f"{total:,} ({shares}); {self.supervised / total:.0%} supervised"],
            "lengths": pd.DataFrame(self.lengths).T.to_string().splitlines(),
            "dropped": _counted(self.dropped),
            "changed": _counted(self.changed),
            "flagged": _counted(self.flagged),
            "duplicates": _counted({"equal to an earlier one": self.duplicates}),
            "added tags": self.added_tags,
            "suspicious": [
                f"row {entry['row']} ({visible(entry['id'], 40)}): {'; '.join(entry['reasons'])}"
                for entry in self.suspicious[:3]
            ],
        }
        lines = [f"{self.source}: {self.rows:,} rows -> {self.kept:,} examples"]
        # ids, sources and reasons come from the data
        lines += [f"  {heading:10}  {text}" for heading, texts in groups.items() for text in texts]
        return "\n".join(map(visible, lines))


_SHOWN = set()  # what this process has printed


def show(report, again=True):
    """Prints a report; unless `again`, one that was printed in this process before gets a single line.

    >>> report = bt.prepare(bt.load_rows("tiny/messy"), bt.load_tokenizer("tiny")).report
    tiny/messy: 1,000 rows -> 1,000 examples...
    >>> show(report, again=False)
    tiny/messy: 1,000 rows -> 1,000 examples, as reported before
    """
    text = str(report)
    print(text if again or text not in _SHOWN else f"{text.splitlines()[0]}, as reported before")
    _SHOWN.add(text)


def _counted(groups):
    """A line for each group: how many rows it has, and the first six of them."""
    return [
        f"{len(rows):,} (rows {reprlib.repr(rows)[1:-1]}): {name}"
        for name, rows in groups.items()
        if rows
    ]


def figures(examples) -> dict:
    """What a report counts in a table, by column: tokens of each kind, `supervised`, the share of `distinct` tokens in
    a completion, and a digest of the tokens."""
    n = len(examples)
    # all examples end to end
    names = ("input_ids", "kinds", "weights")
    ids, kinds, weights = [pc.list_flatten(examples[name]).to_numpy() for name in names]
    lengths = pc.list_value_length(examples["input_ids"]).fill_null(0).to_numpy()
    # which example each token is of: one count over all tokens does for all examples
    example_of = np.repeat(np.arange(n), lengths)
    columns = {
        name: np.bincount(example_of[kinds == kind], minlength=n)
        for kind, name in enumerate(_NAMES)
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


def drop_duplicates(outcomes):
    """Drops each example whose tokens are those of an earlier one: over all rows, of which a process sees its share."""
    kept = outcomes[outcomes["dropped"].isna()]
    outcomes.loc[kept.index[kept.duplicated("digest")], "dropped"] = _COPY


def make_report(outcomes, source, added_tags=()) -> Report:
    """The report on a set called `source`.

    Args:
        outcomes: a frame with a line for each example in the order of the rows, or for each row that gave none: `row`,
            `id`, `flags` and `changed` (lists), `dropped` (the reason, or None), and the `figures`.
    """
    # from here on an index is the place of an example in the set
    kept = outcomes[outcomes["dropped"].isna()].reset_index(drop=True)
    # a row counts once, whatever number of its turns were changed
    changed = outcomes.explode("changed").drop_duplicates(["row", "changed"])
    dropped = _rows_by(outcomes, "dropped")
    # dropped duplicates are duplicates, too
    copies = kept["row"][kept.duplicated("digest")].tolist() + dropped.get(_COPY, [])
    sizes = kept[_NAMES]
    lengths = sizes.assign(sequence=sizes.sum(axis=1), thought=sizes["think"])
    lengths = lengths[["sequence", "prompt", "thought", "answer"]]
    spreads = lengths.quantile([0, 0.5, 0.9, 1], interpolation="nearest").fillna(0).astype(int)
    spreads.index = ["shortest", "median", "90%", "longest"]
    return Report(
        source=source,
        rows=outcomes["row"].nunique(),
        kept=len(kept),
        dropped=dropped,
        changed=_rows_by(changed, "changed"),
        flagged=_rows_by(kept.explode("flags"), "flags"),
        duplicates=sorted(copies),
        added_tags=list(added_tags),
        tokens=sizes.sum().astype(int).to_dict(),
        supervised=int(kept["supervised"].sum()),
        lengths=spreads.to_dict(),
        suspicious=_suspicious(kept),
    )


def _rows_by(outcomes, column):
    """Value of a column -> the rows that have it."""
    return outcomes.groupby(column, sort=False)["row"].apply(list).to_dict()


def _suspicious(kept):
    """The ten examples farthest from the medians, and those with an empty answer, worst first."""
    values = kept[list(_REASONS)]
    values = values.where(values > 0)
    medians = values.median()
    # sizes differ by factors
    far = np.log(values / medians)
    # 1.4826 makes the median deviation a standard deviation where values are normal; what is within a factor of 2 of
    # the median is not far, however alike the others are
    far /= (1.4826 * far.abs().median()).clip(lower=np.log(2) / _FAR)
    far["distinct"] = far["distinct"].clip(upper=0)  # few repetitions are no fault
    far = far.abs().where(far.abs() > _FAR, 0)
    far.loc[values["answer"] == 1, "answer"] = _FAR  # the end of turn alone
    # of equal ones the first rows
    worst = far.sum(axis=1).nlargest(10)
    return [
        {
            "row": int(kept["row"][i]),
            "id": kept["id"][i],
            "reasons": [
                f"{round(values[name][i], 2):g} {noun}, the median is {round(medians[name], 2):g}"
                for name, noun in _REASONS.items()
                if far[name][i]
            ],
        }
        for i in worst.index[worst > 0]
    ]


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
