"""Fetch the documents of a table into a folder of Parquet files. Readers find the complete snapshot or nothing.

    <path>/_snapshots/<name>/*.parquet    the documents of one snapshot; hidden from readers that list the folder
    <path>/_fetched.json                  written last, in one step: the current snapshot, and the request that it answers

If the folder already holds what is requested, nothing is done. Each fetch writes to a new folder, because tasks of a killed
fetch may keep writing for a moment. The previous snapshot stays until the next fetch, so that a run over it can finish or
resume.
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
from pipeline.io.parquet import to_parquet
from pipeline.runs import lease
from pipeline.tables.base import open_source

_REQUEST_OPTIONS = {"kind", "table", "catalog", "connection", "id_column", "text_column", "keep_columns", "filter"}


@dataclass(frozen=True)
class Fetched:
    """Snapshot that the folder now holds. is_new: False if it already did."""

    snapshot: str
    rows: int
    is_new: bool


def fetch(config: FetchConfig) -> Fetched:
    """Write the current documents of a table into the folder.

    Raises:
        UserError: the table or a column is missing, or the table cannot be reached; a value does not fit its column's type; the
            folder cannot be written, or another fetch is writing it.
        Stopped: fewer or more rows arrived than the table has. The folder is unchanged.
    """
    folder = open_location(config.output.path, "--output.path")
    with lease.hold(folder, "fetch") as held, open_source(config.input) as source:
        request = {**config.input.model_dump(include=_REQUEST_OPTIONS), "snapshot": source.snapshot}
        previous = read_pointer(folder) or {}
        if previous.get("request") == request:
            return Fetched(source.snapshot, previous["rows"], is_new=False)
        held.verify()
        snapshots, name = folder.child(SNAPSHOTS), uuid.uuid4().hex[:16]
        for old in snapshots.names():
            if old != previous.get("folder"):
                snapshots.child(old).remove_folder()
        snapshot = snapshots.child(name)
        try:
            expected = source.write(snapshot)
            rows = complete_snapshot(snapshot, source.schema)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"cannot write {snapshot.uri}: {describe_error(error)}; set --output.path") from None
        if expected is not None and rows != expected:
            raise Stopped(f"{rows:,} rows arrived, but {config.input.table} has {expected:,}; run jobs.fetch again")
        held.verify()
        pointer = {"folder": name, "rows": rows, "fetched_at": datetime.now(UTC).isoformat(), "request": request}
        write_pointer(folder, pointer)
    return Fetched(source.snapshot, rows, is_new=True)


def write_pointer(folder: Location, pointer: Mapping[str, Any]) -> None:
    folder.child(POINTER).write(json.dumps(pointer, indent=2).encode() + b"\n")


def complete_snapshot(snapshot: Location, schema: pa.Schema) -> int:
    """Return the number of rows in a snapshot's files. If there is no file, write an empty one, which has the columns."""
    rows = 0
    files = snapshot.files() if snapshot.exists() else []
    for file in files:
        with pq.ParquetFile(file.path, filesystem=snapshot.filesystem) as parquet:
            rows += parquet.metadata.num_rows
    if not files:
        snapshot.child("part-none.parquet").write(to_parquet(schema.empty_table()))
    return rows
