"""Which documents make a window: cut from the files of a store in their order, the same each time.

    files ── units, each read by one task ── windows, each decoded, and written, as a whole

Files of any shape come to the same: small ones share a unit, a large one has many. A unit's windows are numbered from 0, so
that a window has a name before anyone has read it: one that is computed twice, after a crash, is written over.

Nothing here knows a tokenizer, a model or Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipeline.data.arrow import plain_type
from pipeline.data.row_address import ROW_ADDRESS, ROW_BITS
from pipeline.data.splits import RowRange, Split
from pipeline.errors import UserError, describe_error
from pipeline.io.parallel import map_ahead
from pipeline.io.retry import STORAGE

_FILES_AHEAD = 8
"""Small files that are read ahead, since each takes a while to answer and little to read."""


_BATCH_BYTES = 64 * 2**20


_READ_ERRORS = (OSError, pa.ArrowException, KeyError, UnicodeDecodeError, MemoryError)


_BUFFER_BYTES = 2**20
"""Of a column that is read as a stream: a row group may be larger than memory."""


@dataclass(frozen=True)
class ReadFailure:
    """A file, or what is left of one, that cannot be read, however often one tries. rows: of it that were to be read."""

    path: str
    rows: int
    error: str


def fail_run(file: ReadFailure) -> None:
    """Raises UserError: for a run that goes on with sound files alone."""
    raise UserError(
        f"cannot read {file.path}: {file.error}; mend it, or go on without what is left of it: --input.on_bad_file skip"
    )


def read_split(
    unit: Split,
    filesystem: fs.FileSystem,
    columns: Sequence[str],
    rows: int,
    on_unreadable: Callable[[ReadFailure], None] = fail_run,
) -> Iterator[pa.Table]:
    """Read a unit: tables of the columns and ``ROW_ADDRESS``, of so many rows at most; small files, a few ahead.

    Args:
        on_unreadable: called for a file that cannot be read; the others follow if it does not raise.

    Raises:
        UserError: a file has another number of rows than the plan says.
    """

    def whole(span: RowRange) -> list[pa.Table] | None:
        """Its tables; None where it is to be read in its turn, as a stream: it is more than it looks, or cannot be read now."""
        if not span.small:
            return None
        found, held = list[pa.Table](), 0
        try:
            for table in _read_range(span, filesystem, columns, rows):
                found.append(table)
                held += table.nbytes
                if held > _BATCH_BYTES:
                    return None
        except _READ_ERRORS:
            return None
        return found

    for span, found in zip(unit.spans, map_ahead(whole, unit.spans, _FILES_AHEAD, _FILES_AHEAD - 1), strict=True):
        for table in _read_with_retry(span, filesystem, columns, rows) if found is None else found:
            if isinstance(table, ReadFailure):
                on_unreadable(table)
            else:
                yield table


def rebatch(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The rows of tables, in order, in tables of so many each but for the last."""
    waiting: list[pa.Table] = []
    have = 0
    for table in tables:
        waiting.append(table)
        have += len(table)
        while have >= rows:
            together = pa.concat_tables(waiting, promote_options="permissive")
            yield together.slice(0, rows)
            waiting, have = [together.slice(rows)], have - rows
    if have:
        yield pa.concat_tables(waiting, promote_options="permissive")


def _read_with_retry(
    span: RowRange, filesystem: fs.FileSystem, columns: Sequence[str], rows: int
) -> Iterator[pa.Table | ReadFailure]:
    """A span's rows. A storage that fails for a moment does not end a night's run: reading goes on where it was."""
    for is_last in STORAGE:
        try:
            for table in _read_range(span, filesystem, columns, rows):
                yield table
                span = replace(span, start=span.start + len(table), rows=span.rows - len(table))
            return
        except _READ_ERRORS as error:  # of memory too: what is read ahead may have taken it
            told = describe_error(error)
            is_final = isinstance(error, FileNotFoundError | KeyError | UnicodeDecodeError)
        if is_final or is_last:
            yield ReadFailure(span.path, span.rows, told)
            return


def _batch_rows(metadata: pq.FileMetaData, groups: Sequence[int], most: int) -> int:
    """So many rows as take 64 MB, all columns together, by what the file says of itself; one at least.

    It is asked of its row groups alone: pyarrow ends the process where what a file says of a column is broken.
    """
    for group in map(metadata.row_group, groups):
        most = min(most, max(1, group.num_rows * _BATCH_BYTES // max(group.total_byte_size, 1)))
    return most


def _read_range(span: RowRange, filesystem: fs.FileSystem, columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
    at, skip, left = span.start, span.start, span.rows
    # Buffering ahead is for files that memory may hold: it keeps all that it has read.
    with pq.ParquetFile(span.path, filesystem=filesystem, buffer_size=_BUFFER_BYTES, pre_buffer=span.small) as parquet:
        if parquet.metadata.num_rows != span.of_rows:
            raise UserError(
                f"{span.path} has {parquet.metadata.num_rows} rows where it had {span.of_rows} when the run began; "
                "run it again, once the input stays as it is"
            )
        groups = list[int]()
        for group in range(parquet.num_row_groups):
            in_group = parquet.metadata.row_group(group).num_rows
            if not groups and skip >= in_group:
                skip -= in_group
            else:
                groups.append(group)
        at_a_time = _batch_rows(parquet.metadata, groups, rows)
        batches = parquet.iter_batches(at_a_time, row_groups=groups, columns=list(columns), use_threads=False)
        while left:
            if (batch := next(batches, None)) is None:
                raise pa.ArrowInvalid(f"it ends {left:,} rows before it says that it does")
            skipped = min(skip, len(batch))
            kept = batch.slice(skipped, left)
            skip, left = skip - skipped, left - len(kept)
            if len(kept):
                table = pa.Table.from_batches([kept]).select(list(columns))
                table = table.cast(pa.schema([field.with_type(plain_type(field.type)) for field in table.schema]))
                positions = np.arange(at, at + len(kept), dtype=np.uint64) + (np.uint64(span.file) << np.uint64(ROW_BITS))
                yield table.append_column(ROW_ADDRESS, pa.array(positions))
                at += len(kept)
