"""What became of each row: counted while a set is prepared, then printed, shown in a notebook and saved with a run.

Nothing is lost between `rows` and `kept` without its row number in `dropped`. Ids and the source come from the data
and are hostile: they are escaped in HTML, and without control characters in print.
"""

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from html import escape
from itertools import compress

import numpy as np

from .blur import Kind
from .plots import KIND_COLORS

_KINDS = [int(kind) for kind in Kind]
_QUANTILES = {"shortest": 0, "median": 0.5, "90%": 0.9, "longest": 1}
_PARTS = ("sequence", "prompt", "thought", "answer")
_LISTED = 8
_TABLE = "border-collapse:collapse;font-size:inherit;color:inherit"
_WIDTH = 4 + len(Kind)
_DUPLICATE = "equal to an earlier example"
_OUTLIER = 3.5  # robust standard deviations from the median
_TWICE = math.log(2)  # what is within a factor of 2 of the median is no outlier, however alike the others are


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
    duplicates: list[int]  # rows with an example equal to an earlier one; kept, unless `dropped` has them too
    added_tags: list[str]  # tags that the tokenizer lacked
    tokens: dict[str, int]  # kind -> tokens kept
    supervised: int  # tokens kept with a weight other than 0
    lengths: dict[str, dict[str, int]]  # sequence, prompt, thought, answer -> shortest, median, 90%, longest
    suspicious: list[dict]  # up to ten, worst first: {"row": int, "id": str, "reasons": [str]}

    @property
    def shortest(self) -> int:
        """Tokens of the shortest example kept."""
        return self.lengths["sequence"]["shortest"]

    @property
    def longest(self) -> int:
        """Tokens of the longest example kept."""
        return self.lengths["sequence"]["longest"]

    @property
    def n_dropped(self) -> int:
        """Examples dropped, for whatever reason."""
        return sum(map(len, self.dropped.values()))

    def __str__(self) -> str:
        lines = [self._title(), f"  {'tokens':10}  {self._kinds()}"]
        lines.append(f"  {'lengths':10}" + "".join(f"{name:>10}" for name in _QUANTILES))
        for part, spread in self.lengths.items():
            lines.append(f"    {part:8}" + "".join(f"{tokens:>10,}" for tokens in spread.values()))
        lines += [f"  {name:10}  {text}" for name, text in self._findings()]
        return "\n".join(lines)

    def _title(self) -> str:
        size = f" of {self.shortest:,} to {self.longest:,} tokens" if self.kept else ""
        return f"{_printable(self.source)}: {self.rows:,} rows -> {self.kept:,} examples{size}"

    def _kinds(self) -> str:
        total = max(sum(self.tokens.values()), 1)
        shares = ", ".join(f"{kind} {count / total:.0%}" for kind, count in self.tokens.items())
        return f"{total:,} ({shares}); {self.supervised:,} ({self.supervised / total:.0%}) supervised"

    def _findings(self) -> list[tuple[str, str]]:
        """All that is worth a line: its heading, empty where it is that of the line before, and its text."""
        groups = {"dropped": self.dropped, "changed": self.changed, "flagged": self.flagged}
        found = [
            (name, f"{len(rows):,}: {what} ({_rows(rows)})")
            for name, group in groups.items()
            for what, rows in group.items()
        ]
        if self.duplicates:
            found.append(("duplicates", f"{len(self.duplicates):,} ({_rows(self.duplicates)})"))
        if self.added_tags:
            found.append(("added tags", ", ".join(self.added_tags)))
        for entry in self.suspicious:
            name = entry["id"] if len(entry["id"]) <= 60 else entry["id"][:57] + "..."
            found.append(("suspicious", f"row {entry['row']} ({name}): {'; '.join(entry['reasons'])}"))
        names = [name for name, _ in found]
        return [
            ("" if name == before else name, _printable(text))
            for before, (name, text) in zip(["", *names], found, strict=False)
        ]

    def _repr_html_(self) -> str:
        bar = "".join(
            f'<span style="display:inline-block;height:14px;width:{share:.2f}%;background:{KIND_COLORS[kind]}"></span>'
            for kind, share in zip(Kind, self._percent(), strict=True)
        )
        legend = " &nbsp; ".join(
            f'<span style="display:inline-block;width:10px;height:10px;border:1px solid #888;'
            f'background:{KIND_COLORS[kind]}"></span> {kind.name.lower()} {share:.0f}%'
            for kind, share in zip(Kind, self._percent(), strict=True)
        )
        total = sum(self.tokens.values())
        supervised = f"{total:,} tokens, {self.supervised:,} ({self.supervised / max(total, 1):.0%}) supervised"
        header = _line(["tokens", *_QUANTILES], "th")
        lengths = "".join(_line([part, *(f"{n:,}" for n in spread.values())]) for part, spread in self.lengths.items())
        findings = "".join(_line(pair, align="left") for pair in self._findings())
        return (
            '<div style="font-family:sans-serif;font-size:13px;line-height:1.5;max-width:900px">'
            f"<b>{escape(self._title(), quote=True)}</b>"
            '<div style="margin:6px 0 2px;border:1px solid #888;font-size:0;white-space:nowrap;overflow:hidden">'
            f"{bar}</div><div>{legend} &nbsp; {supervised}</div>"
            f'<table style="{_TABLE};margin:6px 0">{header}{lengths}</table>'
            f'<table style="{_TABLE}">{findings}</table></div>'
        )

    def _percent(self) -> list[float]:
        total = max(sum(self.tokens.values()), 1)
        return [100 * self.tokens[kind.name.lower()] / total for kind in Kind]


def _line(cells: Sequence[str], cell: str = "td", align: str = "right") -> str:
    """A line of a table; its first cell is a heading."""
    style = f"padding:1px 14px 1px 0;border:0;vertical-align:top;overflow-wrap:anywhere;text-align:{align}"
    first, *rest = (escape(text, quote=True) for text in cells)
    head = f'<th style="{style};text-align:left;white-space:nowrap;font-weight:normal;opacity:.75">{first}</th>'
    return f"<tr>{head}" + "".join(f'<{cell} style="{style}">{text}</{cell}>' for text in rest) + "</tr>"


def _rows(rows: list[int]) -> str:
    """`rows 1, 2, 3`, and how many more."""
    shown = ", ".join(map(str, rows[:_LISTED]))
    more = f" and {len(rows) - _LISTED:,} more" * (len(rows) > _LISTED)
    return f"{'row' if len(rows) == 1 else 'rows'} {shown}{more}"


def _printable(text: str) -> str:
    """Without what moves a terminal's cursor, or the direction of the text around it."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


class Tally:
    """Counts examples as they are made. Tallies of parts of a set, made in any process, merge into that of the whole.

    Each row has to be added or dropped at least once: the highest row number says how many there are.
    """

    def __init__(self):
        self._ids: list[str] = []
        self._digests: list[bytes] = []
        self._counts = array("q")  # _WIDTH numbers for each example: row, tokens, supervised, distinct, of each kind
        self._flags: dict[int, list[str]] = {}  # example, by its place among those added -> flags, where it has any
        self._first: dict[bytes, int] = {}  # digest -> the row that had it first
        self._earlier: dict[int, int] = {}  # example -> the row that has the same tokens
        self._dropped: dict[str, list[int]] = {}
        self._changed: dict[str, list[int]] = {}

    def add(self, row: int, example) -> None:
        """Counts a kept example (`id`, `input_ids`, `weights`, `kinds` and `flags`, lists)."""
        ids, kinds, weights = example.input_ids, bytes(example.kinds), example.weights
        digest = blake2b(array("q", ids).tobytes(), digest_size=16).digest()
        distinct = len(set(compress(ids, kinds)))  # of the completion: Kind.PROMPT is 0
        counts = (row, len(ids), len(ids) - weights.count(0.0), distinct, *map(kinds.count, _KINDS))
        self._put(example.id, digest, counts, example.flags)

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
        return [
            self._put(name, digest, other._counts[i * _WIDTH : (i + 1) * _WIDTH], other._flags.get(i), drop_duplicates)
            for i, (name, digest) in enumerate(zip(other._ids, other._digests, strict=True))
        ]

    def _put(
        self, name: str, digest: bytes, counts: Sequence[int], flags: list[str] | None, drop_duplicate: bool = False
    ) -> bool:
        row, place = counts[0], len(self._ids)
        if digest not in self._first:
            self._first[digest] = row
        elif drop_duplicate:
            self.drop(row, _DUPLICATE)
            return False
        else:
            self._earlier[place] = self._first[digest]
        if flags:
            self._flags[place] = flags
        self._ids.append(name)
        self._digests.append(digest)
        self._counts.extend(counts)
        return True

    def report(self, source: str, added_tags: Sequence[str] = ()) -> Report:
        """The report on a set called `source`."""
        counts = np.array(self._counts, np.int64).reshape(-1, _WIDTH)
        row, tokens, supervised, kinds = counts[:, 0], counts[:, 1], counts[:, 2], counts[:, -len(Kind) :]
        flagged: dict[str, list[int]] = {}
        for place, flags in self._flags.items():
            for flag in flags:
                flagged.setdefault(flag, []).append(int(row[place]))
        seen = [*self._dropped.values(), *self._changed.values(), row.tolist()]
        parts = (tokens, kinds[:, Kind.PROMPT], kinds[:, Kind.THINK], kinds[:, Kind.ANSWER])
        return Report(
            source=source,
            rows=1 + max((max(rows, default=-1) for rows in seen), default=-1),
            kept=len(counts),
            dropped={reason: sorted(rows) for reason, rows in self._dropped.items()},
            changed={what: sorted(rows) for what, rows in self._changed.items()},
            flagged=flagged,
            duplicates=sorted([*self._dropped.get(_DUPLICATE, []), *(int(row[i]) for i in self._earlier)]),
            added_tags=list(added_tags),
            tokens={kind.name.lower(): int(kinds[:, kind].sum()) for kind in Kind},
            supervised=int(supervised.sum()),
            lengths={name: _quantiles(part) for name, part in zip(_PARTS, parts, strict=True)},
            suspicious=self._suspicious(counts, kinds, {flag: len(rows) for flag, rows in flagged.items()}),
        )

    def _suspicious(self, counts: np.ndarray, kinds: np.ndarray, flagged: dict[str, int]) -> list[dict]:
        """The ten examples with the most surprising reasons. What half of a set has is a surprise of one bit."""
        found: dict[int, list[tuple[float, str]]] = {}
        n, thought, answer = len(counts), kinds[:, Kind.THINK], kinds[:, Kind.ANSWER]
        for place, flags in self._flags.items():
            found[place] = [(math.log2(n / flagged[f]), f"{f}, as {flagged[f]:,} of {n:,} are") for f in flags]
        for place, row in self._earlier.items():
            reason = (math.log2(n / len(self._earlier)), f"the same tokens as row {row}")
            found.setdefault(place, []).append(reason)
        for place in np.flatnonzero(answer == 1).tolist():
            found.setdefault(place, []).append((_OUTLIER, "empty answer: 1 token, the end of turn"))
        for name, part in (("thought", thought), ("answer", answer)):
            for place, z, median in _outliers(part):
                reason = f"{name} of {part[place]:,} tokens, the median is {median:,.0f}"
                found.setdefault(place, []).append((abs(z), reason))
        share = counts[:, 3] / np.maximum(counts[:, 1] - kinds[:, Kind.PROMPT], 1)
        for place, z, median in _outliers(share):
            if z < 0:
                reason = f"repeats itself: {share[place]:.0%} distinct tokens, the median is {median:.0%}"
                found.setdefault(place, []).append((-z, reason))
        worst = sorted(found, key=lambda place: (-sum(surprise for surprise, _ in found[place]), place))[:10]
        return [
            {
                "row": int(counts[place, 0]),
                "id": self._ids[place],
                "reasons": [reason for _, reason in sorted(found[place], reverse=True)],
            }
            for place in worst
        ]


def _quantiles(lengths: np.ndarray) -> dict[str, int]:
    """The shortest, median, ... of some lengths, each one that occurs; 0 where there are none."""
    values = np.quantile(lengths, [*_QUANTILES.values()], method="nearest") if len(lengths) else [0] * len(_QUANTILES)
    return {name: int(value) for name, value in zip(_QUANTILES, values, strict=True)}


def _outliers(values: np.ndarray) -> Iterator[tuple[int, float, float]]:
    """Place, robust standard deviations of the logarithm from its median, and median, of each outlier. Values of 0
    count nowhere."""
    places = np.flatnonzero(values)
    if not len(places):
        return
    logs = np.log(values[places])
    away = logs - np.median(logs)
    z = away / max(1.4826 * np.median(np.abs(away)), _TWICE / _OUTLIER)
    for i in np.flatnonzero(np.abs(z) > _OUTLIER).tolist():
        yield int(places[i]), float(z[i]), float(np.quantile(values[places], 0.5, method="nearest"))
