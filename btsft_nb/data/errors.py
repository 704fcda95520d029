"""What is raised for a row that cannot be used."""

import reprlib
from dataclasses import dataclass


@dataclass(eq=False)  # errors are compared by identity, as Python does with those that it shows
class RowError(ValueError):
    """A row that cannot be used as it is.

    Attributes:
        problem: what is wrong, and what would do.
        field: the field it is about; "" for the whole row.
        source: the file or data set; "" where unknown.
        row: the number of the row there, from 0; None where unknown.

    >>> print(bt.RowError("expected text, got int: 5", field="answer", source="data.jsonl", row=3))
    data.jsonl, row 3: field answer: expected text, got int: 5
    """

    problem: str
    field: str = ""
    source: str = ""
    row: int | None = None

    def at(self, source, row):
        """The same error with the place of the row: the data set, and the row's number or None."""
        return type(self)(self.problem, self.field, source, row)

    def __str__(self):
        # Errors of a single row, without a data set, have no source.
        row = "" if self.row is None else f"row {self.row}"
        place = ", ".join(filter(None, [self.source, row]))
        field = f"field {self.field}" if self.field else ""
        return ": ".join(filter(None, [place, field, self.problem]))


def unexpected(value, expected, field="") -> RowError:
    """The error for a value, of which only the beginning is shown, however large it is."""
    # A value can be megabytes long or thousands of lists deep.
    return RowError(f"expected {expected}, got {reprlib.repr(value)}", field)


class UnsuitableRow(RowError):
    """A well-formed row that the chat template has no place for. `prepare` drops and counts it."""
