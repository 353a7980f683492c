"""Which documents make a window: cut from the files of a store in their order, the same each time.

    files ── units, each read by one task ── windows, each decoded, and written, as a whole

Files of any shape come to the same: small ones share a unit, a large one has many. A unit's windows are numbered from 0, so
that a window has a name before anyone has read it: one that is computed twice, after a crash, is written over.

Nothing here knows a tokenizer, a model or Ray.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipeline.errors import UserError
from pipeline.storage import PAUSE_S, TRIES, in_words
from pipeline.text.documents import ROW_BITS, DocumentFile, without_views

POSITION = "nightshift.position"
"""A document's place in its store: the number of the file, and that of the row in the lowest ROW_BITS."""
_WINDOWS_OF_A_UNIT = 32
_BYTES_OF_A_UNIT = 64 * 2**20
"""Of files, that is, compressed. A unit is a window at least."""
_FILES_OF_A_UNIT = 256
_UNITS_OF_A_ROW_GROUP = 8
"""At most: a unit that starts inside a row group reads what lies before it too."""
_FILES_AHEAD = 8
"""Small files that are read ahead, since each takes a while to answer and little to read."""
_SMALL_BYTES = 2 * 2**20
_BYTES_AT_A_TIME = 64 * 2**20
_UNREADABLE = (OSError, pa.ArrowException, KeyError, UnicodeDecodeError, MemoryError)
_BUFFER_BYTES = 2**20
"""Of a column that is read as a stream: a row group may be larger than memory."""


@dataclass(frozen=True)
class Span:
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
class Unit:
    """What one task reads. done: numbers of its windows that are written already, and need not be made again."""

    number: int
    spans: tuple[Span, ...]
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


def unit_of_row(row: dict[str, Any]) -> Unit:
    """From ``dataclasses.asdict(unit)``, as it is once it has been a row of a table."""
    return Unit(row["number"], tuple(Span(**span) for span in row["spans"]), tuple(row["done"]))


def units_of(files: Sequence[DocumentFile], window_rows: int) -> Iterator[Unit]:
    """Cut files, in their order, into units of whole windows; only a unit's last window may be smaller."""
    number, spans = 0, list[Span]()
    for at, file in enumerate(files):
        start = 0
        for in_group in file.row_groups:
            most = _rows_of_a_unit(file, in_group, window_rows)
            end = start + in_group
            while start < end:
                taken = min(end - start, max(1, most - sum(span.rows for span in spans)))
                _add(spans, at, file, start, taken)
                start += taken
                if sum(span.rows for span in spans) >= most or len(spans) == _FILES_OF_A_UNIT:
                    yield Unit(number, tuple(spans))
                    number, spans = number + 1, []
    if spans:
        yield Unit(number, tuple(spans))


def _rows_of_a_unit(file: DocumentFile, in_group: int, window_rows: int) -> int:
    """A multiple of a window's."""
    by_bytes = _BYTES_OF_A_UNIT * file.rows // max(file.file.size, 1) // window_rows
    by_group = math.ceil(in_group / _UNITS_OF_A_ROW_GROUP / window_rows)
    return window_rows * max(1, min(_WINDOWS_OF_A_UNIT, by_bytes), by_group)


def _add(spans: list[Span], number: int, file: DocumentFile, start: int, rows: int) -> None:
    """Rows of a file to a unit's spans; they may go on where the last span ends."""
    path = file.file.path
    if spans and spans[-1].path == path:
        last = spans.pop()
        start, rows = last.start, last.rows + rows
    small = rows == file.rows and file.file.size <= _SMALL_BYTES
    spans.append(Span(path, number, start, rows, file.rows, small))


@dataclass(frozen=True)
class Unreadable:
    """A file, or what is left of one, that cannot be read, however often one tries. rows: of it that were to be read."""

    path: str
    rows: int
    error: str


def end_the_run(file: Unreadable) -> None:
    """Raises UserError: for a run that goes on with sound files alone."""
    raise UserError(
        f"cannot read {file.path}: {file.error}; mend it, or go on without what is left of it: --input.on_bad_file skip"
    )


def rows_of(
    unit: Unit,
    filesystem: fs.FileSystem,
    columns: Sequence[str],
    rows: int,
    on_unreadable: Callable[[Unreadable], None] = end_the_run,
) -> Iterator[pa.Table]:
    """Read a unit: tables of the columns and ``POSITION``, of so many rows at most; small files, a few ahead.

    Args:
        on_unreadable: called for a file that cannot be read; the others follow if it does not raise.

    Raises:
        UserError: a file has another number of rows than the plan says.
    """

    def whole(span: Span) -> list[pa.Table] | None:
        """Its tables; None where it is to be read in its turn, as a stream: it is more than it looks, or cannot be read now."""
        found, held = list[pa.Table](), 0
        try:
            for table in _tables_of(span, filesystem, columns, rows):
                found.append(table)
                held += table.nbytes
                if held > _BYTES_AT_A_TIME:
                    return None
        except _UNREADABLE:
            return None
        return found

    with ThreadPoolExecutor(_FILES_AHEAD) as pool:
        ahead = {}
        for at, span in enumerate(unit.spans):
            for later in range(at, min(at + _FILES_AHEAD, len(unit.spans))):
                if later not in ahead and unit.spans[later].small:
                    ahead[later] = pool.submit(whole, unit.spans[later])
            found = ahead.pop(at).result() if at in ahead else None
            for table in _tried_again(span, filesystem, columns, rows) if found is None else found:
                if isinstance(table, Unreadable):
                    on_unreadable(table)
                else:
                    yield table


def regrouped(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
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


def _tried_again(span: Span, filesystem: fs.FileSystem, columns: Sequence[str], rows: int) -> Iterator[pa.Table | Unreadable]:
    """A span's rows. A storage that fails for a moment does not end a night's run: reading goes on where it was."""
    for failures in range(TRIES):
        try:
            for table in _tables_of(span, filesystem, columns, rows):
                yield table
                span = replace(span, start=span.start + len(table), rows=span.rows - len(table))
            return
        except _UNREADABLE as error:  # of memory too: what is read ahead may have taken it
            told = in_words(error)
            is_final = isinstance(error, FileNotFoundError | KeyError | UnicodeDecodeError)
        if is_final or failures == TRIES - 1:
            yield Unreadable(span.path, span.rows, told)
            return
        time.sleep(PAUSE_S * 2**failures)


def _rows_at_a_time(metadata: pq.FileMetaData, groups: Sequence[int], most: int) -> int:
    """So many rows as take 64 MB, all columns together, by what the file says of itself; one at least.

    It is asked of its row groups alone: pyarrow ends the process where what a file says of a column is broken.
    """
    for group in map(metadata.row_group, groups):
        most = min(most, max(1, group.num_rows * _BYTES_AT_A_TIME // max(group.total_byte_size, 1)))
    return most


def _tables_of(span: Span, filesystem: fs.FileSystem, columns: Sequence[str], rows: int) -> Iterator[pa.Table]:
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
        at_a_time = _rows_at_a_time(parquet.metadata, groups, rows)
        batches = parquet.iter_batches(at_a_time, row_groups=groups, columns=list(columns), use_threads=False)
        while left:
            if (batch := next(batches, None)) is None:
                raise pa.ArrowInvalid(f"it ends {left:,} rows before it says that it does")
            skipped = min(skip, len(batch))
            kept = batch.slice(skipped, left)
            skip, left = skip - skipped, left - len(kept)
            if len(kept):
                table = pa.Table.from_batches([kept]).select(list(columns))
                table = table.cast(pa.schema([field.with_type(without_views(field.type)) for field in table.schema]))
                positions = np.arange(at, at + len(kept), dtype=np.uint64) + (np.uint64(span.file) << np.uint64(ROW_BITS))
                yield table.append_column(POSITION, pa.array(positions))
                at += len(kept)
