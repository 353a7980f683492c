"""JSON files of a run, in a bucket that others may write to."""

from __future__ import annotations

import contextlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from scratch import SCRATCH

from pipeline.config.summarize import DocumentsInput
from pipeline.data.splits import RowRange, Split
from pipeline.errors import UserError
from pipeline.io.location import open_location
from pipeline.runs import lease
from pipeline.runs.layout import PROGRESS, SUCCESS
from pipeline.runs.manifest import Manifest, WindowRecord
from pipeline.runs.publish import read_success
from pipeline.runs.status import run_status
from pipeline.runs.unreadable_files import UnreadableFiles

_NOW = datetime(2026, 1, 1, tzinfo=UTC).isoformat()
_SPLIT = Split(1, (RowRange("/in/a.parquet", 0, 0, 10, 10),))


def window_record() -> dict[str, Any]:
    return {
        "unit": 0, "number": 0, "last": True, "actor": "a", "documents": 1, "skipped": {}, "unread": {}, "rejected": {},
        "truncated": 0, "reached_length_limit": 0, "source_tokens": 3, "summary_tokens": 2, "effort": {},
        "files": [{"path": "summaries/run=r/part-0.parquet", "rows": 1, "bytes": 9, "sha256": "00"}], "digest": {},
    }  # fmt: skip


def _manifest() -> dict[str, Any]:
    config = {"input": DocumentsInput().model_dump()}
    return {
        "run_id": "r", "started_at": _NOW, "finished_at": _NOW, "startup_s": 1, "seconds": 1, "model_fingerprint": "ab",
        "config": config, "decoding": {}, "versions": {}, "actors": 1, "ledger": 0, "counts": {"read": 1, "summarized": 1},
        "reject_share": 0, "taken_over": 0, "gone": {}, "effort": {}, "limits": "", "input_files": [], "unread": {},
        "output_files": window_record()["files"],
    }  # fmt: skip


def seeds() -> list[bytes]:
    """Return one of each type of file, after a byte with its number."""
    files: list[Any] = [
        {"sequence": 3, "manifest_sha256": "ab"},
        {"run_id": "r", "at": _NOW, "phase": "running", "documents": 9, "counts": {"read": 3}},
        {"run_id": "r", "machine": lease.machine_id(), "pid": 1, "born": 1.5, "renewals": 4},
        {"/in/a.parquet": {"rows": 3, "error": "broken"}},
        {"files": [{"file": {"path": "/p", "size": 4, "modified": None}, "row_groups": [1]}], "seen": [{"skipped": {}}]},
        window_record(),
        _manifest(),
    ]
    return [str(number).encode() + json.dumps(value).encode() for number, value in enumerate(files)]


def target(data: bytes) -> None:
    """Read the file, or raise UserError or ValidationError."""
    output = open_location(str(SCRATCH), "--output.path")
    number, content = data[:1], data[1:]
    with contextlib.suppress(UserError):
        if number == b"0":
            _put(f"runs/r/{SUCCESS}", content)
            read_success(output, "r")
        elif number == b"1":
            _put(f"runs/s/{PROGRESS}", content)
            run_status(output, None)
            run_status(output, "s")
        elif number == b"2":
            _put("lease/claim.json", content)
            if holder := lease.current_holder(output):
                str(holder), holder.is_local and holder.is_running
        elif number == b"3":
            _put("notes/unit-000001.json", content)
            unreadable = UnreadableFiles("skip", output.child("notes")).of(_SPLIT)
            assert unreadable.readable.rows <= _SPLIT.rows
        else:
            with contextlib.suppress(ValidationError):
                _check_paths(content)


def _put(path: str, content: bytes) -> None:
    file = Path(SCRATCH, path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)


def _check_paths(content: bytes) -> None:
    """Check that a manifest, or the record of a window, names no file outside the output."""
    if b'"output_files"' in content:
        manifest = Manifest.model_validate_json(content)
        files = manifest.output_files
        assert manifest.config["input"]["path"]
    else:
        files = WindowRecord.model_validate_json(content).files
    for file in files:
        assert open_location("/out", "--x").contains(open_location(f"/out/{file.path}", "--x")), file.path
