"""Cut an input's files into splits, each read by one task."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.data.documents import DocumentFile

_MAX_WINDOWS = 32


_MAX_BYTES = 64 * 2**20
"""Of files, that is, compressed. A unit is a window at least."""


_MAX_FILES = 256


_MAX_SPLITS_PER_ROW_GROUP = 8
"""At most: a unit that starts inside a row group reads what lies before it too."""


_SMALL_BYTES = 2 * 2**20


@dataclass(frozen=True)
class RowRange:
    """Rows ``start`` to ``start + rows`` of a file that has of_rows. small: the whole of a file that memory may hold.

    file: its number in the store.
    """

    path: str
    file: int
    start: int
    rows: int
    of_rows: int
    small: bool = False


@dataclass(frozen=True)
class Split:
    """What one task reads. done: numbers of its windows that are written already, and need not be made again."""

    number: int
    spans: tuple[RowRange, ...]
    done: tuple[int, ...] = field(default=())

    @property
    def rows(self) -> int:
        """Documents in it."""
        return sum(span.rows for span in self.spans)

    def __str__(self) -> str:
        first, last = self.spans[0], self.spans[-1]
        if first is not last:
            return f"row {first.start:,} of {first.path} to row {last.start + last.rows - 1:,} of {last.path}"
        return f"rows {first.start:,} to {first.start + first.rows - 1:,} of {first.path}"


def split_from_dict(row: dict[str, Any]) -> Split:
    """From ``dataclasses.asdict(unit)``, as it is once it has been a row of a table."""
    return Split(row["number"], tuple(RowRange(**span) for span in row["spans"]), tuple(row["done"]))


def cut_splits(files: Sequence[DocumentFile], window_rows: int) -> Iterator[Split]:
    """Cut files, in their order, into units of whole windows; only a unit's last window may be smaller."""
    number, spans = 0, list[RowRange]()
    for at, file in enumerate(files):
        start = 0
        for in_group in file.row_groups:
            most = _split_rows(file, in_group, window_rows)
            end = start + in_group
            while start < end:
                taken = min(end - start, max(1, most - sum(span.rows for span in spans)))
                _extend(spans, at, file, start, taken)
                start += taken
                if sum(span.rows for span in spans) >= most or len(spans) == _MAX_FILES:
                    yield Split(number, tuple(spans))
                    number, spans = number + 1, []
    if spans:
        yield Split(number, tuple(spans))


def _split_rows(file: DocumentFile, in_group: int, window_rows: int) -> int:
    """A multiple of a window's."""
    by_bytes = _MAX_BYTES * file.rows // max(file.file.size, 1) // window_rows
    by_group = math.ceil(in_group / _MAX_SPLITS_PER_ROW_GROUP / window_rows)
    return window_rows * max(1, min(_MAX_WINDOWS, by_bytes), by_group)


def _extend(spans: list[RowRange], number: int, file: DocumentFile, start: int, rows: int) -> None:
    """Rows of a file to a unit's spans; they may go on where the last span ends."""
    path = file.file.path
    if spans and spans[-1].path == path:
        last = spans.pop()
        start, rows = last.start, last.rows + rows
    small = rows == file.rows and file.file.size <= _SMALL_BYTES
    spans.append(RowRange(path, number, start, rows, file.rows, small))
