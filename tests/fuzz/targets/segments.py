"""Parquet files of a run, in a bucket that others may write to: a segment of the ledger, and a plan."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from scratch import SCRATCH

from pipeline.errors import UserError
from pipeline.inference.run_spec import PLAN_FILES, SPEC_KEY, RunSpec, read_plan
from pipeline.io.location import open_location
from pipeline.runs.ledger import ENTRY, encode_segment, read_entries, window_records
from pipeline.runs.manifest import WindowRecord
from targets.documents import as_parquet
from targets.records import window_record


def seeds() -> list[bytes]:
    """Return a segment and a plan, each after a byte with its number."""
    entries = np.zeros(40, ENTRY)
    entries["id"] = np.arange(40) << 50
    plan = {
        "started_at": datetime(2026, 1, 1, tzinfo=UTC), "input": {}, "model_fingerprint": "ab", "decoding": {}, "full": False,
        "window_rows": 10, "window_tokens": None, "ledger": 0, "unread": {},
    }  # fmt: skip
    rows = [{"path": "/in/a.parquet", "size": 9, "modified": datetime(2026, 1, 1, tzinfo=UTC), "row_groups": [3, 4]}]
    table = pa.Table.from_pylist(rows, PLAN_FILES).replace_schema_metadata({SPEC_KEY: RunSpec(**plan).model_dump_json()})
    return [
        b"0" + encode_segment(entries, WindowRecord(**window_record())).to_pybytes(),
        b"1" + as_parquet(table, compression="zstd"),
    ]


def target(data: bytes) -> None:
    """Read the file, or raise UserError."""
    output = open_location(str(SCRATCH), "--output.path")
    path = Path(SCRATCH, "ledger/run=r/part-0.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data[1:])
    if data[:1] == b"0":
        with contextlib.suppress(UserError):
            list(window_records(output, "r"))
        with contextlib.suppress(UserError):
            read_entries(output.filesystem, str(path))
    else:
        with contextlib.suppress(UserError):
            read_plan(open_location(str(path), "--output.path"))
