"""From a store to a folder of Parquet documents, which a reader finds whole or not at all.

    <path>/_snapshots/<name>/*.parquet    the documents of one snapshot; hidden from who lists the folder
    <path>/_fetched.json                  written last, at once: which snapshot is the one to read, and what it is of

Who asks for the same again finds it done. Each fetch has a name of its own, for tasks of one that was killed may write for a
moment more. The snapshot before stays until the next fetch, so that a run that reads it, or was cut off over it, can go on.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.tables import FetchConfig
from pipeline.data.snapshots import POINTER, SNAPSHOTS, read_pointer
from pipeline.errors import Stopped, UserError, describe_error
from pipeline.io.location import Location, open_location
from pipeline.runs import lease
from pipeline.tables.base import open_source

_OF_THE_REQUEST = {"kind", "table", "catalog", "connection", "id_column", "text_column", "keep_columns", "filter"}


@dataclass(frozen=True)
class Fetched:
    """What lies in the folder now. is_new: it did not before."""

    snapshot: str
    rows: int
    is_new: bool


def fetch(config: FetchConfig) -> Fetched:
    """Bring the documents of a store, as they are now, into the folder.

    Raises:
        UserError: the store has no such table or column, cannot be reached, or a value is not of its column's type; the folder
            cannot be written, or another fetch does so.
        Stopped: not as many documents came through as the store says it has. The folder is as it was.
    """
    folder = open_location(config.output.path, "--output.path")
    pointer = folder.child(POINTER)
    with lease.hold(folder, "fetch") as held, open_source(config.input) as source:
        request = {**config.input.model_dump(include=_OF_THE_REQUEST), "snapshot": source.snapshot}
        before = read_pointer(folder) or {}
        if before.get("request") == request:
            return Fetched(source.snapshot, before["rows"], is_new=False)
        held.verify()
        _remove_all_but(folder.child(SNAPSHOTS), before.get("folder"))
        name = uuid.uuid4().hex[:16]
        snapshot = folder.child(SNAPSHOTS).child(name)
        try:
            expected = source.write(snapshot)
            rows = _written(snapshot, source.schema)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"cannot write {snapshot.uri}: {describe_error(error)}; set --output.path") from None
        if expected is not None and rows != expected:
            raise Stopped(f"{rows:,} documents came through where {config.input.table} has {expected:,}; fetch them again")
        manifest = {"folder": name, "rows": rows, "fetched_at": datetime.now(UTC).isoformat(), "request": request}
        held.verify()
        _point_to(manifest, pointer)
    return Fetched(source.snapshot, rows, is_new=True)


def _point_to(manifest: Mapping[str, Any], pointer: Location) -> None:
    """From here on readers find this snapshot."""
    pointer.write(json.dumps(manifest, indent=2).encode() + b"\n")


def _remove_all_but(snapshots: Location, name: str | None) -> None:
    """What was cut off, and all but the last that is whole."""
    for other in snapshots.names() if snapshots.exists() else []:
        if other != name:
            snapshots.child(other).remove_folder()


def _written(snapshot: Location, schema: pa.Schema) -> int:
    """The rows of a folder, by the files' ends. Of none there is a file all the same, by which columns are known."""
    rows = 0
    files = snapshot.files() if snapshot.exists() else []
    for file in files:
        with pq.ParquetFile(file.path, filesystem=snapshot.filesystem) as parquet:
            rows += parquet.metadata.num_rows
    if not files:
        sink = pa.BufferOutputStream()
        pq.write_table(schema.empty_table(), sink)
        snapshot.child("part-none.parquet").write(sink.getvalue())
    return rows
