"""Read the rows of a split from Parquet files, and retry reads that fail.

Small files are read ahead by threads; other files are read as a stream, since a row group may be larger than memory.
Knows nothing about tokenizers, models or Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipeline.data.arrow import plain_type
from pipeline.data.row_address import ROW_ADDRESS, row_addresses
from pipeline.data.splits import RowRange, Split
from pipeline.errors import UserError, describe_error
from pipeline.io.parallel import map_ahead
from pipeline.io.retry import STORAGE

_FILES_AHEAD = 8
_BATCH_BYTES = 64 * 2**20
_BUFFER_BYTES = 2**20  # per column of a file that is read as a stream

_READ_ERRORS = (OSError, pa.ArrowException, KeyError, UnicodeDecodeError, MemoryError)


@dataclass(frozen=True)
class ReadFailure:
    """The rest of a file that could not be read after all retries.

    Attributes:
        rows: Rows of the split that are in it.
    """

    path: str
    rows: int
    error: str


def fail_run(failure: ReadFailure) -> None:
    raise UserError(
        f"cannot read {failure.path}: {failure.error}; repair it, or skip its unreadable rows with --input.on_bad_file skip"
    )


def read_split(
    split: Split,
    filesystem: fs.FileSystem,
    columns: Sequence[str],
    max_rows: int,
    on_unreadable: Callable[[ReadFailure], None] = fail_run,
) -> Iterator[pa.Table]:
    """Yield the rows of a split, in order, as tables of at most ``max_rows`` rows.

    Args:
        columns: Columns to read; ``ROW_ADDRESS`` is added to them.
        on_unreadable: Called for each file that cannot be read; reading continues with the next file if it returns.

    Raises:
        UserError: A file does not have the same number of rows as when the run started.
    """

    def read_small(row_range: RowRange) -> list[pa.Table] | None:
        """Return all tables of a small file, or None to read it as a stream, with retries."""
        if not row_range.is_small:
            return None
        tables, table_bytes = list[pa.Table](), 0
        try:
            for table in read_range(row_range, filesystem, columns, max_rows):
                tables.append(table)
                table_bytes += table.nbytes
                if table_bytes > _BATCH_BYTES:
                    return None
        except _READ_ERRORS:
            return None
        return tables

    small_files = map_ahead(read_small, split.row_ranges, _FILES_AHEAD, _FILES_AHEAD - 1)
    for row_range, tables in zip(split.row_ranges, small_files, strict=True):
        for table in _read_with_retry(row_range, filesystem, columns, max_rows) if tables is None else tables:
            if isinstance(table, ReadFailure):
                on_unreadable(table)
            else:
                yield table


def rebatch(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield the rows of ``tables``, in order, as tables of ``rows`` rows; only the last may have fewer."""
    pending: list[pa.Table] = []
    pending_rows = 0
    for table in tables:
        pending.append(table)
        pending_rows += len(table)
        while pending_rows >= rows:
            joined = pa.concat_tables(pending, promote_options="permissive")
            yield joined.slice(0, rows)
            pending, pending_rows = [joined.slice(rows)], pending_rows - rows
    if pending_rows:
        yield pa.concat_tables(pending, promote_options="permissive")


def _read_with_retry(
    row_range: RowRange, filesystem: fs.FileSystem, columns: Sequence[str], max_rows: int
) -> Iterator[pa.Table | ReadFailure]:
    """Yield the tables of a row range; after an error, continue with the first row that has not been read."""
    for is_last in STORAGE:
        try:
            for table in read_range(row_range, filesystem, columns, max_rows):
                yield table
                start, rows = row_range.start + len(table), row_range.rows - len(table)
                row_range = replace(row_range, start=start, rows=rows)
            return
        except _READ_ERRORS as error:  # a MemoryError may pass once the files read ahead are released
            message = describe_error(error)
            is_permanent = isinstance(error, FileNotFoundError | KeyError | UnicodeDecodeError)
        if is_permanent or is_last:
            yield ReadFailure(row_range.path, row_range.rows, message)
            return


def read_range(row_range: RowRange, filesystem: fs.FileSystem, columns: Sequence[str], max_rows: int) -> Iterator[pa.Table]:
    """Yield one row range as tables of at most ``max_rows`` rows, without retries."""
    path, is_small = row_range.path, row_range.is_small
    # pre_buffer keeps all that it reads in memory.
    with pq.ParquetFile(path, filesystem=filesystem, buffer_size=_BUFFER_BYTES, pre_buffer=is_small) as parquet:
        if parquet.metadata.num_rows != row_range.file_rows:
            raise UserError(
                f"{path} has {parquet.metadata.num_rows} rows, but it had {row_range.file_rows} when the run started; "
                "run again once the input no longer changes"
            )
        groups, skip = _row_groups_from(parquet.metadata, row_range.start)
        batch_rows = _batch_rows(parquet.metadata, groups, max_rows)
        batches = parquet.iter_batches(batch_rows, row_groups=groups, columns=list(columns), use_threads=False)
        start, remaining = row_range.start, row_range.rows
        while remaining:
            if (batch := next(batches, None)) is None:
                raise pa.ArrowInvalid(f"the file ends {remaining:,} rows early")
            wanted = batch.slice(min(skip, len(batch)), remaining)
            skip = max(0, skip - len(batch))
            if len(wanted):
                table = pa.Table.from_batches([wanted]).select(list(columns))
                table = table.cast(pa.schema([field.with_type(plain_type(field.type)) for field in table.schema]))
                yield table.append_column(ROW_ADDRESS, pa.array(row_addresses(row_range.file_number, start, len(table))))
                start, remaining = start + len(table), remaining - len(table)


def _row_groups_from(metadata: pq.FileMetaData, start: int) -> tuple[list[int], int]:
    """Return the row groups from the one with row ``start`` on, and the rows to skip in the first of them."""
    group = 0
    while group < metadata.num_row_groups and start >= metadata.row_group(group).num_rows:
        start -= metadata.row_group(group).num_rows
        group += 1
    return list(range(group, metadata.num_row_groups)), start


def _batch_rows(metadata: pq.FileMetaData, groups: Sequence[int], max_rows: int) -> int:
    """Return how many rows take about 64 MB, all columns together, according to the footer; at least 1.

    It reads the totals of row groups only: pyarrow aborts the process on broken metadata of a column.
    """
    for group in map(metadata.row_group, groups):
        max_rows = min(max_rows, max(1, group.num_rows * _BATCH_BYTES // max(group.total_byte_size, 1)))
    return max_rows
