"""The ledger: what is done, in 16 bytes a document, by which the next run knows what it need not do again.

    ledger/run=<run_id>/part-<window>.parquet     a segment: entries of one window, and its record. It is written after the
                                                  window's other files, and so says that these are whole
    ledger/compacted/<sequence>/part-<n>.parquet  entries of all runs up to that one, the last of each id; then _SUCCESS

An entry is a document's two keys (keys.py). The lowest bit of a content key says that the document was rejected. Segments of
a run count for others once the run is published.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from pyarrow import fs

from pipeline import cluster
from pipeline.cluster import LIGHT_CPUS
from pipeline.data.hashing import Keys
from pipeline.data.partition import partition_count, partition_of, partition_rows
from pipeline.errors import UserError, describe_error
from pipeline.io.location import Location, StoredFile
from pipeline.io.parallel import map_ahead
from pipeline.io.parquet import to_parquet
from pipeline.runs.layout import COMPACTED, LEDGER, SUCCESS, parts_path
from pipeline.runs.manifest import WindowRecord
from pipeline.runs.publish import FinishedRun, finished_runs

ENTRY = np.dtype([("id", "<u8"), ("content", "<u8")])


REJECTED = np.uint64(1)


Entries = npt.NDArray[np.void]


_RECORD = b"nightshift.window"


_SEQUENCED_ENTRY = np.dtype([*ENTRY.descr, ("sequence", "<u4")])


_ENTRIES = pa.schema([pa.field("id", pa.uint64(), nullable=False), pa.field("content", pa.uint64(), nullable=False)])


_MAX_EXPANSION = 64
"""Of a file, to its entries: hashes hardly compress."""


_TASK_BYTES = 2**28
"""Of files. They hold little that compresses: some 300 MB of entries, and their runs."""


def encode_segment(entries: Entries, record: WindowRecord) -> pa.Buffer:
    """The file that is written there."""
    return to_parquet(_table(entries), {_RECORD.decode(): record.model_dump_json()}, store_schema=False)


def _table(entries: Entries) -> pa.Table:
    return pa.table({"id": np.ascontiguousarray(entries["id"]), "content": np.ascontiguousarray(entries["content"])})


def window_records(output: Location, run_id: str) -> Iterator[WindowRecord]:
    """The records of a run's windows that are written, whether it is published or not.

    Raises:
        UserError: a segment cannot be read.
    """
    found = [file for file, _ in _entry_files(output.child(parts_path(LEDGER, run_id)), 0)]
    yield from map_ahead(lambda file: _read_record(output, file), found)


def has_records(output: Location, run_id: str) -> bool:
    """Whether any window of a run is written."""
    return bool(_entry_files(output.child(parts_path(LEDGER, run_id)), 0))


def _read_record(output: Location, file: StoredFile) -> WindowRecord:
    try:
        metadata = pq.read_schema(file.path, filesystem=output.filesystem).metadata
        return WindowRecord.model_validate_json(metadata[_RECORD])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file.path} is no segment of a ledger: {describe_error(error)}; remove it: its window is done again"
        ) from None


@dataclass(frozen=True)
class Ledger:
    """The entries of published runs, sorted by id, the last of each; in Ray's object store, by the first bits of the id."""

    parts: Sequence[ray.ObjectRef[Entries]]
    entries: int

    def lookup(self) -> LedgerLookup:
        """To look into, in a task."""
        return LedgerLookup(ray.get(list(self.parts)))


@dataclass(frozen=True)
class LedgerLookup:
    """A ledger whose parts are mapped into this process's memory."""

    parts: Sequence[Entries]

    def find(self, ids: Keys) -> tuple[npt.NDArray[np.bool_], Keys]:
        """For N ids, by key: which there is an entry of [N], and the content key of it [N]."""
        found, contents = np.zeros(len(ids), np.bool_), np.zeros(len(ids), np.uint64)
        part_of = partition_of(ids, len(self.parts))
        for number, part in enumerate(self.parts):
            [rows] = np.nonzero(part_of == number)
            if not len(part) or not len(rows):
                continue
            at = np.minimum(np.searchsorted(part["id"], ids[rows]), len(part) - 1)
            found[rows] = part["id"][at] == ids[rows]
            contents[rows] = part["content"][at]
        return found, contents


def load(output: Location, runs: Sequence[FinishedRun], until: int) -> Ledger:
    """Load the entries of the runs up to a sequence number; none for 0.

    Args:
        runs: the finished runs of the output.

    Raises:
        UserError: it cannot be read, or does not reach back so far since it was compacted.
    """
    compacted = compacted_sequence(output) if until else 0
    if compacted > until:
        raise UserError(
            f"the ledger of {output.uri} was compacted just now; run the same command again, or, where the last published run "
            "has been removed since, with --full, which does without it"
        )
    files = _entry_files(output.child(f"{COMPACTED}/{compacted:06}"), compacted) if compacted else []
    for run in runs:
        if compacted < run.sequence <= until:
            files += _entry_files(output.child(parts_path(LEDGER, run.run_id)), run.sequence)
    if not files:
        return Ledger([], 0)
    parts = partition_count(sum(file.size for file, _ in files) // ENTRY.itemsize)
    read = _read_entries.options(num_returns=parts)
    chosen = cluster.chunk_by_weight(files, lambda file: file[0].size, _TASK_BYTES)
    by_task = [
        cluster.as_refs(read.remote(output.filesystem, [(file.path, at) for file, at in some], parts)) for some in chosen
    ]
    merged = [_keep_latest.options(num_returns=2).remote(*pieces) for pieces in zip(*by_task, strict=True)]
    return Ledger([part for part, _ in merged], sum(ray.get([entries for _, entries in merged])))


def _entry_files(folder: Location, sequence: int) -> list[tuple[StoredFile, int]]:
    found = folder.files() if folder.exists() else []  # some may be the rest of one that was cut off
    return [(file, sequence) for file in found if file.path.endswith(".parquet")]


@ray.remote(num_cpus=LIGHT_CPUS)
def _read_entries(filesystem: Any, files: Sequence[tuple[str, int]], parts: int) -> Any:
    """The entries of some files, with their runs' sequence numbers, by part."""
    tables = []
    for path, sequence in files:
        entries = read_entries(filesystem, path)
        dated = np.empty(len(entries), _SEQUENCED_ENTRY)
        dated["id"], dated["content"], dated["sequence"] = entries["id"], entries["content"], sequence
        tables.append(dated)
    together = np.concatenate(tables)
    divided = partition_rows(together, parts)
    return divided if parts > 1 else divided[0]


def read_entries(filesystem: fs.FileSystem, path: str) -> Entries:
    """The entries of one file. Raises UserError if it cannot be read, or is none of a ledger's."""
    try:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            if file.metadata.num_rows * ENTRY.itemsize > _MAX_EXPANSION * filesystem.get_file_info(path).size:
                raise pa.ArrowInvalid(f"it says that it has {file.metadata.num_rows:,} entries")
            table = file.read(columns=_ENTRIES.names, use_threads=False).cast(_ENTRIES)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UserError(f"cannot read the ledger: {path}: {describe_error(error)}; --full does without it") from None
    entries = np.empty(len(table), ENTRY)
    entries["id"], entries["content"] = (table[name].to_numpy() for name in _ENTRIES.names)
    return entries


@ray.remote(num_cpus=LIGHT_CPUS)
def _keep_latest(*pieces: Any) -> tuple[Any, int]:
    """Sorted by id; of entries of one id the one of the last run."""
    dated = np.concatenate(pieces)
    dated = dated[np.lexsort((dated["sequence"], dated["id"]))]
    last = np.append(dated["id"][1:] != dated["id"][:-1], True)[: len(dated)]
    entries = np.empty(int(last.sum()), ENTRY)
    entries["id"], entries["content"] = dated["id"][last], dated["content"][last]
    return entries, len(entries)


def compact(output: Location) -> tuple[int, int]:
    """Write the ledger's entries into few files, and remove those that they replace. The caller holds the lease.

    Killed at any moment, it leaves a ledger that says the same.

    Returns:
        Entries, and files that were replaced.

    Raises:
        UserError: nothing is published there, or the ledger cannot be read or written.
    """
    runs = finished_runs(output)
    if not runs:
        raise UserError(f"no run is finished in {output.uri}; set --output.path to a folder that jobs.summarize wrote")
    until = runs[-1].sequence
    before = compacted_sequence(output)
    target = output.child(f"{COMPACTED}/{until:06}")
    if before < until:
        ledger = load(output, runs, until)
        ray.get([_write_part.remote(target, number, part) for number, part in enumerate(ledger.parts)])
        target.child(SUCCESS).write(b"")
        entries = ledger.entries
    else:
        files = _entry_files(target, until)
        entries = sum(pq.read_metadata(file.path, filesystem=output.filesystem).num_rows for file, _ in files)
    replaced = 0
    for run in runs:
        folder = output.child(parts_path(LEDGER, run.run_id))
        replaced += len(folder.files()) if folder.exists() else 0
        folder.remove_folder()
    for name in output.child(COMPACTED).names():
        if name < f"{until:06}":
            output.child(f"{COMPACTED}/{name}").remove_folder()
    return entries, replaced


@ray.remote(num_cpus=LIGHT_CPUS)
def _write_part(target: Location, number: int, entries: Any) -> None:
    target.child(f"part-{number:05}.parquet").write_with_retry(to_parquet(_table(entries)))


def compacted_sequence(output: Location) -> int:
    """The sequence number that the ledger is compacted to; 0 if it is not."""
    folder = output.child(COMPACTED)
    names = folder.names() if folder.exists() else []
    return max((int(name) for name in names if folder.child(name).child(SUCCESS).exists()), default=0)
