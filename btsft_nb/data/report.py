"""What became of each row: counted while a set is prepared, then printed, shown in a notebook and saved with a run.

Nothing is lost between `rows` and `kept` without its row number in `dropped`. Ids and the source come from the data
and are hostile: they are escaped in HTML, and without control characters in print.
"""

import math
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from html import escape
from itertools import chain, compress

import numpy as np

from .kinds import KIND_COLORS, Kind
from .messages import shown

_QUANTILES = {"shortest": 0, "median": 0.5, "90%": 0.9, "longest": 1}
_LISTED = 8
_DUPLICATE = "equal to an earlier example"
_REPEATS = "repeats itself: {:.0%} distinct tokens, the median is {:.0%}"
_OUTLIER = 3.5  # robust standard deviations from the median


@dataclass
class Report:
    """What `prepare` did with each row. Rows are numbered from 0; all lengths and counts of text are in tokens.

    Every field is plain JSON: `Report(**json.loads(json.dumps(asdict(report))))` equals `report`.
    """

    source: str
    rows: int
    kept: int  # examples; a row can give several
    dropped: dict[str, list[int]]  # reason -> the row of each example dropped
    changed: dict[str, list[int]]  # what was changed -> rows
    flagged: dict[str, list[int]]  # what is odd about an example's think tags -> rows, all kept
    duplicates: list[
        int
    ]  # rows with an example equal to an earlier one; kept, unless `dropped` has them too
    added_tags: list[str]  # tags that the tokenizer lacked
    tokens: dict[str, int]  # kind -> tokens kept
    supervised: int  # tokens kept with a weight other than 0
    lengths: dict[
        str, dict[str, int]
    ]  # sequence, prompt, thought, answer -> shortest, median, 90%, longest
    suspicious: list[dict]  # up to ten, worst first: {"row": int, "id": str, "reasons": [str]}

    @property
    def n_dropped(self) -> int:
        """Examples dropped, for whatever reason."""
        return sum(map(len, self.dropped.values()))

    def __str__(self) -> str:
        return self._text(3)

    def _text(self, n: int) -> str:
        """The report with the first `n` suspicious rows."""
        suspicious = [
            f"row {e['row']} ({shown(e['id'])}): {'; '.join(e['reasons'])}" for e in self.suspicious
        ]
        if len(suspicious) > n:
            suspicious[n:] = [f"and {len(suspicious) - n} more, in report.suspicious"]
        total = sum(self.tokens.values())
        shares = ", ".join(
            f"{kind} {count / max(total, 1):.0%}" for kind, count in self.tokens.items()
        )
        trained = f"{self.supervised:,} ({self.supervised / max(total, 1):.0%}) supervised"
        groups = {
            "tokens": [f"{total:,} ({shares}); {trained}"],
            "lengths": [
                f"{part:8}  " + ", ".join(f"{name} {tokens:,}" for name, tokens in spread.items())
                for part, spread in self.lengths.items()
            ],
            "dropped": [f"{_rows(rows)}: {reason}" for reason, rows in self.dropped.items()],
            "changed": [f"{_rows(rows)}: {what}" for what, rows in self.changed.items()],
            "flagged": [f"{_rows(rows)}: {flag}" for flag, rows in self.flagged.items()],
            "duplicates": [_rows(self.duplicates)] if self.duplicates else [],
            "added tags": [", ".join(self.added_tags)] if self.added_tags else [],
            "suspicious": suspicious,
        }
        size = (
            " of {shortest:,} to {longest:,} tokens".format(**self.lengths["sequence"])
            if self.kept
            else ""
        )
        lines = [f"{self.source}: {self.rows:,} rows -> {self.kept:,} examples{size}"]
        for heading, texts in groups.items():
            lines += [f"  {heading if i == 0 else '':10}  {text}" for i, text in enumerate(texts)]
        return "\n".join(
            "".join(c if c.isprintable() else "\ufffd" for c in line) for line in lines
        )

    def _repr_html_(self) -> str:
        """What is printed and all suspicious rows, under a bar of the kinds."""
        total, bar, legend = max(sum(self.tokens.values()), 1), "", ""
        for kind, color in KIND_COLORS.items():
            name, box = (
                kind.name.lower(),
                f'<span style="display:inline-block;height:12px;background:{color};width:',
            )
            bar += f'{box}{100 * self.tokens[name] / total:.2f}%"></span>'
            legend += f'{box}12px"></span> {name} &nbsp; '
        return (
            f'<div style="max-width:900px"><div style="font-size:0;white-space:nowrap">{bar}</div>{legend}'
            '<pre style="font:13px monospace;white-space:pre-wrap;overflow-wrap:anywhere">'
            f"{escape(self._text(10))}</pre></div>"
        )


def _rows(rows: list[int]) -> str:
    """How many, and the first of them."""
    listed = ", ".join(map(str, rows[:_LISTED])) + ", ..." * (len(rows) > _LISTED)
    return f"{len(rows):,} ({'row' if len(rows) == 1 else 'rows'} {listed})"


class Tally:
    """Counts examples as they are made. Tallies of parts of a set, made in any process, merge into that of the whole.

    Each row has to be added or dropped at least once: the highest row number says how many there are.
    """

    def __init__(self):
        # id, digest of the tokens, flags; and row, supervised, distinct, and tokens of each kind
        self._examples: list[tuple[str, bytes, list[str], tuple[int, ...]]] = []
        self._first: dict[bytes, int] = {}  # digest -> the example that had it first, by its place
        self._dropped: dict[str, list[int]] = {}
        self._changed: dict[str, list[int]] = {}

    def add(self, row: int, example) -> None:
        """Counts a kept example (`id`, `input_ids`, `weights`, `kinds` and `flags`, lists)."""
        ids, kinds, weights = example.input_ids, bytes(example.kinds), example.weights
        digest = blake2b(array("q", ids).tobytes(), digest_size=16).digest()
        distinct = len(set(compress(ids, kinds)))  # of the completion: Kind.PROMPT is 0
        counts = (row, len(ids) - weights.count(0.0), distinct, *map(kinds.count, range(len(Kind))))
        self._first.setdefault(digest, len(self._examples))
        self._examples.append((example.id, digest, example.flags, counts))

    def drop(self, row: int, reason: str) -> None:
        """Counts an example that is left out."""
        self._dropped.setdefault(reason, []).append(row)

    def change(self, row: int, what: str) -> None:
        """Counts a change that was made to a row."""
        self._changed.setdefault(what, []).append(row)

    def merge(self, other: "Tally", drop_duplicates: bool = False) -> list[bool]:
        """Adds what another one counted on later rows; returns which of the examples added there are kept: all, or
        those whose tokens no earlier example has."""
        for mine, others in ((self._dropped, other._dropped), (self._changed, other._changed)):
            for name, rows in others.items():
                mine.setdefault(name, []).extend(rows)
        kept = []
        for example in other._examples:
            _, digest, _, (row, *_) = example
            kept.append(not drop_duplicates or digest not in self._first)
            if kept[-1]:
                self._first.setdefault(digest, len(self._examples))
                self._examples.append(example)
            else:
                self.drop(row, _DUPLICATE)
        return kept

    def report(self, source: str, added_tags: Sequence[str] = ()) -> Report:
        """The report on a set called `source`."""
        counts = np.array([counts for *_, counts in self._examples], np.int64).reshape(
            -1, 3 + len(Kind)
        )
        row, kinds = counts[:, 0], counts[:, 3:]
        flagged, earlier = defaultdict(list), {}
        for i, (_, digest, flags, _) in enumerate(self._examples):
            for flag in flags:
                flagged[flag].append(i)
            if self._first[digest] != i:
                earlier[i] = self._first[digest]
        sizes = kinds if len(row) else np.zeros((1, len(Kind)))
        parts = {"prompt": Kind.PROMPT, "thought": Kind.THINK, "answer": Kind.ANSWER}
        parts = {"sequence": sizes.sum(1), **{part: sizes[:, kind] for part, kind in parts.items()}}
        return Report(
            source=source,
            rows=1
            + max(
                chain(row.tolist(), *self._dropped.values(), *self._changed.values()), default=-1
            ),
            kept=len(row),
            dropped={reason: sorted(rows) for reason, rows in self._dropped.items()},
            changed={what: sorted(rows) for what, rows in self._changed.items()},
            flagged={flag: row[places].tolist() for flag, places in flagged.items()},
            duplicates=sorted([*self._dropped.get(_DUPLICATE, []), *row[list(earlier)].tolist()]),
            added_tags=list(added_tags),
            tokens={kind.name.lower(): int(kinds[:, kind].sum()) for kind in Kind},
            supervised=int(counts[:, 1].sum()),
            lengths={
                part: {
                    name: int(np.quantile(tokens, at, method="nearest"))
                    for name, at in _QUANTILES.items()
                }
                for part, tokens in parts.items()
            },
            suspicious=self._suspicious(counts, flagged, earlier),
        )

    def _suspicious(
        self, counts: np.ndarray, flagged: dict[str, list[int]], earlier: dict[int, int]
    ) -> list[dict]:
        """The ten examples with the most surprising reasons. What half of a set has is a surprise of one bit."""
        found, n, row, kinds = defaultdict(list), len(counts), counts[:, 0], counts[:, 3:]
        for flag, places in flagged.items():
            for i in places:
                found[i].append(
                    (math.log2(n / len(places)), f"{flag}, as {len(places):,} of {n:,} are")
                )
        for i, first in earlier.items():
            found[i].append((math.log2(n / len(earlier)), f"the same tokens as row {row[first]}"))
        for i in np.flatnonzero(kinds[:, Kind.ANSWER] == 1):
            found[i].append((_OUTLIER, "empty answer: 1 token, the end of turn"))
        for values, reason in (
            (kinds[:, Kind.THINK], "thought of {:,} tokens, the median is {:,.0f}"),
            (kinds[:, Kind.ANSWER], "answer of {:,} tokens, the median is {:,.0f}"),
            (counts[:, 2] / np.maximum(kinds[:, 1:].sum(1), 1), _REPEATS),
        ):
            for i, z, median in _outliers(values):
                if z < 0 or reason != _REPEATS:
                    found[i].append((abs(z), reason.format(values[i], median)))
        worst = sorted(found, key=lambda i: (-sum(surprise for surprise, _ in found[i]), i))[:10]
        reasons = {i: [reason for _, reason in sorted(found[i], reverse=True)] for i in worst}
        return [
            {"row": int(row[i]), "id": self._examples[i][0], "reasons": reasons[i]} for i in worst
        ]


def _outliers(values: np.ndarray) -> Iterator[tuple[int, float, float]]:
    """Place, robust standard deviations of the logarithm from its median, and median, of each outlier. Values of 0
    count nowhere; what is within a factor of 2 of the median is none, however alike the others are."""
    if values.any():
        logs = np.log(np.where(values > 0, values, np.nan))
        median = np.nanmedian(logs)
        z = (logs - median) / max(
            1.4826 * np.nanmedian(np.abs(logs - median)), math.log(2) / _OUTLIER
        )
        for i in np.flatnonzero(np.abs(z) > _OUTLIER):
            yield int(i), float(z[i]), math.exp(median)
