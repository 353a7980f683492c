"""Which documents make a window: cut from the files of a store in their order, the same each time.

    files ── units, each read by one task ── windows, each decoded, and written, as a whole

Files of any shape come to the same: small ones share a unit, a large one has many. A unit's windows are numbered from 0, so
that a window has a name before anyone has read it, and what a crashed run has written is known to the next.

Nothing here knows a tokenizer, a model or Ray.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipeline.errors import UserError
from pipeline.storage import in_words
from pipeline.text.documents import DocumentFile

_WINDOWS_OF_A_UNIT = 32
"""A unit that starts inside a row group reads what lies before it too, so units are not small; nor so large that few are left
to share among tasks."""
_FILES_OF_A_UNIT = 256
_FILES_AHEAD = 8
"""Small files that are read ahead, since each takes a while to answer and little to read."""
_SMALL_ROWS, _SMALL_BYTES = 10_000, 16 * 2**20
_BUFFER_BYTES = 2**20
"""Of a column that is read as a stream: a row group may be larger than memory."""


@dataclass(frozen=True)
class Span:
    """Rows ``start`` to ``start + rows`` of a file. small: the whole of a file that may be held in memory."""

    path: str
    start: int
    rows: int
    small: bool = False


@dataclass(frozen=True)
class Unit:
    """What one task reads."""

    number: int
    spans: tuple[Span, ...]

    @property
    def rows(self) -> int:
        """Documents in it."""
        return sum(span.rows for span in self.spans)


def unit_of_row(row: dict[str, Any]) -> Unit:
    """From ``dataclasses.asdict(unit)``, as it is once it has been a row of a table."""
    return Unit(row["number"], tuple(Span(**span) for span in row["spans"]))


def units_of(files: Sequence[DocumentFile], window_rows: int) -> Iterator[Unit]:
    """Cut files, in their order, into units of whole windows; only a unit's last window may be smaller."""
    most = _WINDOWS_OF_A_UNIT * window_rows
    number, spans, room = 0, list[Span](), most
    for file in files:
        small = file.rows <= _SMALL_ROWS and file.file.size <= _SMALL_BYTES
        start = 0
        while start < file.rows:
            taken = min(room, file.rows - start)
            spans.append(Span(file.file.path, start, taken, small and taken == file.rows))
            start, room = start + taken, room - taken
            if room == 0 or len(spans) == _FILES_OF_A_UNIT:
                yield Unit(number, tuple(spans))
                number, spans, room = number + 1, [], most
    if spans:
        yield Unit(number, tuple(spans))


def windows_of(unit: Unit, filesystem: fs.FileSystem, columns: Sequence[str], window_rows: int) -> Iterator[pa.Table]:
    """Read a unit: tables of the columns, of ``window_rows`` rows each but for the last.

    Raises:
        UserError: a file cannot be read, or has fewer rows than the unit says.
    """
    waiting: list[pa.Table] = []
    rows = 0
    for table in _tables(unit, filesystem, columns, window_rows):
        waiting.append(table)
        rows += len(table)
        while rows >= window_rows:
            together = pa.concat_tables(waiting, promote_options="permissive")
            yield together.slice(0, window_rows)
            waiting, rows = [together.slice(window_rows)], rows - window_rows
    if rows:
        yield pa.concat_tables(waiting, promote_options="permissive")


def _tables(unit: Unit, filesystem: fs.FileSystem, columns: Sequence[str], window_rows: int) -> Iterator[pa.Table]:
    """A unit's rows in tables of a window's size at most; small files, a few ahead."""

    def whole(span: Span) -> list[pa.Table]:
        return list(_tables_of(span, filesystem, columns, window_rows))

    with ThreadPoolExecutor(_FILES_AHEAD) as pool:
        ahead = {}
        for at, span in enumerate(unit.spans):
            for later in range(at, min(at + _FILES_AHEAD, len(unit.spans))):
                if later not in ahead and unit.spans[later].small:
                    ahead[later] = pool.submit(whole, unit.spans[later])
            yield from ahead.pop(at).result() if at in ahead else _tables_of(span, filesystem, columns, window_rows)


def _tables_of(span: Span, filesystem: fs.FileSystem, columns: Sequence[str], window_rows: int) -> Iterator[pa.Table]:
    skip, left = span.start, span.rows
    try:
        with pq.ParquetFile(span.path, filesystem=filesystem, buffer_size=_BUFFER_BYTES) as parquet:
            groups = list[int]()
            for group in range(parquet.num_row_groups):
                in_group = parquet.metadata.row_group(group).num_rows
                if not groups and skip >= in_group:
                    skip -= in_group
                else:
                    groups.append(group)
            batches = parquet.iter_batches(window_rows, row_groups=groups, columns=list(columns), use_threads=False)
            while left:
                batch = next(batches, None)
                if batch is None:
                    raise UserError(f"{span.path} has {left} rows fewer than when the run began; {_BEGIN_ANEW}")
                skipped = min(skip, len(batch))
                kept = batch.slice(skipped, left)
                skip, left = skip - skipped, left - len(kept)
                if len(kept):
                    yield pa.Table.from_batches([kept]).select(list(columns))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {span.path}: {in_words(error)}; mend it, or set --input.path to sound files") from None


_BEGIN_ANEW = "begin anew, with another --output.run_id, once the input stays as it is"
