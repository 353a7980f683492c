"""``--resources.sort global``: what is to be done, by length, as a store of its own that the run reads instead of the input.

    units ── screened, with lengths ── Ray Data's sort ── runs/<run_id>/sorted/part-<n>.parquet, then sorted.json

Windows are cut from it as from any store. It is an all-to-all step: every text goes through Ray's object store, which spills to
disk what memory does not hold, and is written and read once more, before the first window is decoded. A run that is cut off
goes on from the copy, which is removed once the run is published.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data
from pydantic import BaseModel, TypeAdapter, ValidationError

from pipeline.errors import Stopped
from pipeline.inference.manifest import UnreadRows
from pipeline.inference.passport import PRIVATE
from pipeline.inference.pool import LIGHT_CPUS
from pipeline.inference.reading import ReadWindows
from pipeline.inference.windows import POSITION, Unit, rows_of, unit_of_row
from pipeline.storage import Place, StoredFile
from pipeline.text.documents import DocumentFile

LENGTH, _SEEN = PRIVATE + "length", PRIVATE + "seen"
_FOLDER, DONE = "sorted", "sorted.json"
_ROWS_AT_A_TIME = 16_384


class Seen(BaseModel):
    """What is not in the copy. skipped, unread: as in a WindowRecord."""

    skipped: dict[str, int] = {}
    unread: dict[str, UnreadRows] = {}


@dataclass(frozen=True)
class Sorted:
    """The copy. files: in order."""

    files: tuple[DocumentFile, ...]
    seen: tuple[Seen, ...]

    @property
    def rows(self) -> int:
        """Documents in it, and those that are left out of it."""
        left_out = sum(sum(s.skipped.values()) + sum(unread.rows or 0 for unread in s.unread.values()) for s in self.seen)
        return left_out + sum(file.rows for file in self.files)


_SORTED: TypeAdapter[Sorted] = TypeAdapter(Sorted)


def sorted_before(folder: Place) -> Sorted | None:
    """The copy that an earlier command of the run left in its folder, if it is whole.

    Raises:
        UserError: the storage does not answer.
    """
    if not folder.child(DONE).exists():
        return None
    try:
        found = _SORTED.validate_json(folder.child(DONE).read())
    except ValidationError:
        return None
    there = {file.path: file.size for file in folder.child(_FOLDER).files()} if folder.child(_FOLDER).exists() else {}
    return found if all(there.get(file.file.path) == file.file.size for file in found.files) else None


def remove_sorted(folder: Place) -> None:
    """Remove the copy, and what was cut off of one, from a run's folder."""
    folder.child(DONE).remove()
    folder.child(_FOLDER).remove_folder()


def sort_documents(units: Sequence[Unit], read: ReadWindows, folder: Place, check: Callable[[], None]) -> Sorted:
    """Write the copy into a run's folder. read: the stage that would read the units. check: called before it is declared whole.

    Raises:
        UserError: the copy cannot be written. Stopped: not all documents came to it.
        RayError: a task failed; one that cannot read a file raises UserError, if ``on_bad_file`` is "fail".
    """
    remove_sorted(folder)
    if not units:
        return Sorted((), ())
    rows = (
        ray.data.from_items([asdict(unit) for unit in units], override_num_blocks=len(units))
        .map_batches(_Measure(read), batch_format="pyarrow", batch_size=None, num_cpus=LIGHT_CPUS)
        .sort([LENGTH, POSITION])
        .map_batches(_Write(folder.child(_FOLDER)), batch_format="pyarrow", batch_size=None, num_cpus=LIGHT_CPUS)
    )
    files, seen = list[DocumentFile](), list[Seen]()
    for row in rows.iter_rows():
        seen += [Seen.model_validate_json(told) for told in row["seen"]]
        if row["path"] is not None:
            files.append(DocumentFile(StoredFile(row["path"], row["bytes"], None), tuple(row["row_groups"])))
    done = Sorted(tuple(sorted(files, key=lambda file: file.file.path)), tuple(seen))
    came, were = done.rows, sum(unit.rows for unit in units)
    if came != were:
        raise Stopped(f"{came} documents came through the sort where there were {were}; the same command sorts anew")
    check()
    folder.child(DONE).write(_SORTED.dump_json(done))
    return done


@dataclass(frozen=True)
class _Measure:
    """Units to what is left of their documents, with a length; of each unit a row more, shorter than any document: its Seen."""

    read: ReadWindows

    def __call__(self, units: pa.Table) -> Iterator[pa.Table]:
        for unit in map(unit_of_row, units.to_pylist()):
            with self.read.attempt(unit, "sort") as is_first:
                screen, bad = self.read.screen(), self.read.bad_files.of(unit, is_first)
                table = screen.left(self.read.nothing())
                for rows in rows_of(bad.readable, self.read.filesystem, self.read.columns, _ROWS_AT_A_TIME, bad.note):
                    table = screen.left(rows)
                    lengths = pc.fill_null(pc.binary_length(table[self.read.input.text_column]), 0).cast(pa.int64())
                    yield table.append_column(LENGTH, lengths).append_column(_SEEN, pa.nulls(len(table), pa.string()))
                told = Seen(skipped=dict(screen.skipped), unread=bad.unread).model_dump_json()
                nulls = {field.name: pa.nulls(1, field.type) for field in table.schema}
                yield pa.table(nulls | {POSITION: pa.array([unit.number], pa.uint64()), LENGTH: [-1], _SEEN: [told]})


@dataclass(frozen=True)
class _Write:
    """Sorted rows to a file, which is named by the first of them."""

    folder: Place

    def __call__(self, rows: pa.Table) -> pa.Table:
        told = pc.is_valid(rows[_SEEN])
        seen = rows.filter(told)[_SEEN].to_pylist()
        rows = rows.filter(pc.invert(told)).drop_columns([_SEEN])
        path, size, groups = None, 0, list[int]()
        if len(rows):
            place = self.folder.child(f"part-{rows[LENGTH][0].as_py():012}-{rows[POSITION][0].as_py():020}.parquet")
            file = pa.BufferOutputStream()
            pq.write_table(rows.drop_columns([LENGTH, POSITION]), file, compression="zstd", row_group_size=_ROWS_AT_A_TIME)
            content = file.getvalue()
            place.write_patiently(content)
            starts = range(0, len(rows), _ROWS_AT_A_TIME)
            path, size, groups = place.path, len(content), [min(_ROWS_AT_A_TIME, len(rows) - start) for start in starts]
        kinds: dict[str, Any] = {"path": pa.string(), "bytes": pa.int64(), "row_groups": pa.list_(pa.int64())}
        row = {"path": path, "bytes": size, "row_groups": groups, "seen": seen}
        return pa.table({name: pa.array([value], kinds.get(name, pa.list_(pa.string()))) for name, value in row.items()})
