"""What is raised for a row that cannot be used."""

import reprlib


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

    def __init__(self, problem: str, *, field: str = "", source: str = "", row: int | None = None):
        # `args` is the problem alone, so that the error can be pickled.
        super().__init__(problem)
        self.problem = problem
        self.field = field
        self.source = source
        self.row = row

    def at(self, source: str, row: int | None) -> "RowError":
        """The same error with the place of the row."""
        return type(self)(self.problem, field=self.field, source=source, row=row)

    def __str__(self) -> str:
        place = self.source
        if self.row is not None:
            # Errors of a single row, without a data set, have no source.
            place = f"{place}, row {self.row}" if place else f"row {self.row}"
        field = f"field {self.field}" if self.field else ""
        return ": ".join(part for part in (place, field, self.problem) if part)


def unexpected(value: object, expected: str, field: str = "") -> RowError:
    """The error for a value, of which only the beginning is shown, however large it is."""
    # A value can be megabytes long or thousands of lists deep.
    return RowError(f"expected {expected}, got {reprlib.repr(value)}", field=field)


class UnsuitableRow(RowError):
    """A well-formed row that the chat template has no place for. `prepare` drops and counts it."""
