"""Cut the files of an input into splits and windows, the same way every time.

    files ──> splits, each read by one task ──> windows, each decoded and written together

Small files share a split; a large file is cut into many. Windows are numbered from 0 within a split, so a window has its
name before it is read, and a window that is computed again after a crash replaces its own files.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.data.documents import DocumentFile

MAX_WINDOWS = 32
"""Maximum windows of a split."""

MAX_BYTES = 64 * 2**20
"""Maximum compressed bytes of a split that has more than one window."""

MAX_FILES = 256
"""Maximum files of a split."""

MAX_SPLITS_PER_ROW_GROUP = 8
"""Overrides MAX_WINDOWS and MAX_BYTES: a split that starts inside a row group also has to decode the rows before it."""

SMALL_FILE_BYTES = 2 * 2**20
"""A file up to this size is read at once if one split has all of it."""


@dataclass(frozen=True)
class RowRange:
    """Consecutive rows of one file.

    Attributes:
        file_number: Position of the file in the input.
        file_rows: Rows of the whole file.
        is_small: Whether the range is a whole file that fits into memory.
    """

    path: str
    file_number: int
    start: int
    rows: int
    file_rows: int
    is_small: bool = False


@dataclass(frozen=True)
class Split:
    """The rows that one task reads.

    Attributes:
        number: Position among the splits of the run.
        row_ranges: Rows to read, in order.
        done: Numbers of the windows that are already written and are skipped.
    """

    number: int
    row_ranges: tuple[RowRange, ...]
    done: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        return sum(row_range.rows for row_range in self.row_ranges)

    def __str__(self) -> str:
        first, last = self.row_ranges[0], self.row_ranges[-1]
        if first is not last:
            return f"row {first.start:,} of {first.path} to row {last.start + last.rows - 1:,} of {last.path}"
        return f"rows {first.start:,} to {first.start + first.rows - 1:,} of {first.path}"


def split_from_dict(row: dict[str, Any]) -> Split:
    """Restore a split from ``dataclasses.asdict(split)`` after it has passed through an Arrow table."""
    return Split(row["number"], tuple(RowRange(**row_range) for row_range in row["row_ranges"]), tuple(row["done"]))


def cut_splits(files: Sequence[DocumentFile], window_rows: int) -> Iterator[Split]:
    """Cut files, in order, into splits of whole windows; only the last window of a split may have fewer rows."""
    number, row_ranges = 0, list[RowRange]()
    for file_number, file in enumerate(files):
        start = 0
        for group_rows in file.row_groups:
            max_rows = _max_split_rows(file, group_rows, window_rows)
            end = start + group_rows
            while start < end:
                rows = min(end - start, max(1, max_rows - sum(row_range.rows for row_range in row_ranges)))
                _append_rows(row_ranges, file_number, file, start, rows)
                start += rows
                if sum(row_range.rows for row_range in row_ranges) >= max_rows or len(row_ranges) == MAX_FILES:
                    yield Split(number, tuple(row_ranges))
                    number, row_ranges = number + 1, []
    if row_ranges:
        yield Split(number, tuple(row_ranges))


def _max_split_rows(file: DocumentFile, group_rows: int, window_rows: int) -> int:
    """Return the maximum rows of a split in a row group, a multiple of ``window_rows``."""
    by_bytes = MAX_BYTES * file.rows // max(file.file.size, 1) // window_rows
    by_group = math.ceil(group_rows / MAX_SPLITS_PER_ROW_GROUP / window_rows)
    return window_rows * max(1, min(MAX_WINDOWS, by_bytes), by_group)


def _append_rows(row_ranges: list[RowRange], file_number: int, file: DocumentFile, start: int, rows: int) -> None:
    """Append rows of a file, extending the last range if it is of the same file."""
    path = file.file.path
    if row_ranges and row_ranges[-1].path == path:
        last = row_ranges.pop()
        start, rows = last.start, last.rows + rows
    is_small = rows == file.rows and file.file.size <= SMALL_FILE_BYTES
    row_ranges.append(RowRange(path, file_number, start, rows, file.rows, is_small))
