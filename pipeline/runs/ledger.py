"""The ledger: 16 bytes per processed document, by which later runs know what to skip.

    ledger/run=<run_id>/part-<window>.parquet     segment: the entries of one window, and its WindowRecord in the footer;
                                                  written last, so the other files of the window are complete if it exists
    ledger/compacted/<sequence>/part-<n>.parquet  entries of all runs up to that one, the latest of each id; then _SUCCESS

An entry holds the id key and the content key of a document (data/hashing.py); the lowest bit of the content key marks a reject.
Other runs read the segments of a run once it is finished.
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
"""Bit of a content key that marks a reject."""

Entries = npt.NDArray[np.void]

_RECORD = b"nightshift.window"
_SEQUENCED_ENTRY = np.dtype([*ENTRY.descr, ("sequence", "<u4")])
_SCHEMA = pa.schema([pa.field("id", pa.uint64(), nullable=False), pa.field("content", pa.uint64(), nullable=False)])

_MAX_EXPANSION = 64
"""Maximum ratio of entries to file size in bytes: hashes hardly compress, so a file with more is broken."""

_TASK_BYTES = 2**28
"""Size of the files that one task reads."""


def encode_segment(entries: Entries, record: WindowRecord) -> pa.Buffer:
    return to_parquet(_table(entries), {_RECORD.decode(): record.model_dump_json()}, store_schema=False)


def _table(entries: Entries) -> pa.Table:
    return pa.table({"id": np.ascontiguousarray(entries["id"]), "content": np.ascontiguousarray(entries["content"])})


def window_records(output: Location, run_id: str) -> Iterator[WindowRecord]:
    """Yield the records of the windows that a run, finished or not, has written. Raises UserError if one cannot be read."""
    files = _entry_files(output.child(parts_path(LEDGER, run_id)))
    yield from map_ahead(lambda file: _read_record(output, file), files)


def has_records(output: Location, run_id: str) -> bool:
    """Return whether a run has written any window."""
    return bool(_entry_files(output.child(parts_path(LEDGER, run_id))))


def _read_record(output: Location, file: StoredFile) -> WindowRecord:
    try:
        metadata = pq.read_schema(file.path, filesystem=output.filesystem).metadata
        return WindowRecord.model_validate_json(metadata[_RECORD])
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file.path} is not a ledger segment: {describe_error(error)}; remove it to process its window again"
        ) from None


@dataclass(frozen=True)
class Ledger:
    """The latest entry of each id over finished runs, in Ray's object store.

    Attributes:
        parts: One array per partition of the ids (data/partition.py), sorted by id.
    """

    parts: Sequence[ray.ObjectRef[Entries]]
    entries: int


def find_entries(parts: Sequence[Entries], ids: Keys) -> tuple[npt.NDArray[np.bool_], Keys]:
    """Look up N id keys [N] in the parts of a ledger; return which have an entry [N], and its content key [N]."""
    has_entry, contents = np.zeros(len(ids), np.bool_), np.zeros(len(ids), np.uint64)
    part_numbers = partition_of(ids, len(parts))
    for number, part in enumerate(parts):
        [rows] = np.nonzero(part_numbers == number)
        if not len(part) or not len(rows):
            continue
        indices = np.minimum(np.searchsorted(part["id"], ids[rows]), len(part) - 1)
        has_entry[rows] = part["id"][indices] == ids[rows]
        contents[rows] = part["content"][indices]
    return has_entry, contents


def load(output: Location, runs: Sequence[FinishedRun], until: int) -> Ledger:
    """Load the entries of the finished runs up to a sequence number; none for 0.

    Raises:
        UserError: The ledger cannot be read, or was compacted to a later run.
    """
    compacted = compacted_sequence(output) if until else 0
    if compacted > until:
        raise UserError(
            f"the ledger of {output.uri} was compacted to a later run; run the same command again, or add --full to process "
            "all documents if that run has been removed"
        )
    folders = [(f"{COMPACTED}/{compacted:06}", compacted)] if compacted else []
    folders += [(parts_path(LEDGER, run.run_id), run.sequence) for run in runs if compacted < run.sequence <= until]
    files = [(file, sequence) for folder, sequence in folders for file in _entry_files(output.child(folder))]
    if not files:
        return Ledger([], 0)
    parts = partition_count(sum(file.size for file, _ in files) // ENTRY.itemsize)
    read = _read_entries.options(num_returns=parts)
    chunks = cluster.chunk_by_weight(files, lambda file: file[0].size, _TASK_BYTES)
    by_task = [cluster.as_refs(read.remote(output.filesystem, chunk, parts)) for chunk in chunks]
    merged = [_keep_latest.options(num_returns=2).remote(*pieces) for pieces in zip(*by_task, strict=True)]
    return Ledger([part for part, _ in merged], sum(ray.get([entries for _, entries in merged])))


def _entry_files(folder: Location) -> list[StoredFile]:
    files = folder.files() if folder.exists() else []
    return [file for file in files if file.path.endswith(".parquet")]  # an interrupted write may leave a partial file


@ray.remote(num_cpus=LIGHT_CPUS)
def _read_entries(filesystem: Any, files: Sequence[tuple[StoredFile, int]], parts: int) -> Any:
    """Return the entries of files and the sequence numbers of their runs, one array per partition."""
    pieces = []
    for file, sequence in files:
        entries = read_entries(filesystem, file.path)
        piece = np.empty(len(entries), _SEQUENCED_ENTRY)
        piece["id"], piece["content"], piece["sequence"] = entries["id"], entries["content"], sequence
        pieces.append(piece)
    partitions = partition_rows(np.concatenate(pieces), parts)
    return partitions if parts > 1 else partitions[0]


def read_entries(filesystem: fs.FileSystem, path: str) -> Entries:
    """Read the entries of one file. Raises UserError if it cannot be read or is not of a ledger."""
    try:
        with pq.ParquetFile(path, filesystem=filesystem) as file:
            if file.metadata.num_rows * ENTRY.itemsize > _MAX_EXPANSION * filesystem.get_file_info(path).size:
                raise pa.ArrowInvalid(f"its footer claims {file.metadata.num_rows:,} entries")
            table = file.read(columns=_SCHEMA.names, use_threads=False).cast(_SCHEMA)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UserError(f"cannot read the ledger file {path}: {describe_error(error)}; add --full to run without it") from None
    entries = np.empty(len(table), ENTRY)
    entries["id"], entries["content"] = (table[name].to_numpy() for name in _SCHEMA.names)
    return entries


@ray.remote(num_cpus=LIGHT_CPUS)
def _keep_latest(*pieces: Any) -> tuple[Any, int]:
    """Return the latest entry of each id, sorted by id, and the number of entries."""
    joined = np.concatenate(pieces)
    joined = joined[np.lexsort((joined["sequence"], joined["id"]))]
    is_latest = np.append(joined["id"][1:] != joined["id"][:-1], True)[: len(joined)]
    entries = np.empty(int(is_latest.sum()), ENTRY)
    entries["id"], entries["content"] = joined["id"][is_latest], joined["content"][is_latest]
    return entries, len(entries)


def compact_ledger(output: Location) -> tuple[int, int]:
    """Rewrite the ledger of finished runs as few files and remove the old ones; the caller holds the lease.

    The entries stay the same even if it is killed at any moment.

    Returns:
        The number of entries, and the number of files that were replaced.

    Raises:
        UserError: The ledger cannot be read or written.
    """
    runs = finished_runs(output)
    until = runs[-1].sequence
    target = output.child(f"{COMPACTED}/{until:06}")
    if compacted_sequence(output) < until:
        ledger = load(output, runs, until)
        ray.get([_write_part.remote(target, number, part) for number, part in enumerate(ledger.parts)])
        target.child(SUCCESS).write(b"")
        entries = ledger.entries
    else:
        entries = sum(pq.read_metadata(file.path, filesystem=output.filesystem).num_rows for file in _entry_files(target))
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
    """Return the sequence number of the last run that the ledger is compacted to; 0 if it is not compacted."""
    folder = output.child(COMPACTED)
    names = folder.names()
    return max((int(name) for name in names if folder.child(name).child(SUCCESS).exists()), default=0)
