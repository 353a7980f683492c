"""Malicious documents, outputs and texts: decompression bombs, paths, broken records and control characters."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.console import new_console
from pipeline.config.loader import load_config
from pipeline.config.runs import StatusConfig, VerifyConfig
from pipeline.config.summarize import DocumentsInput, SummarizeConfig
from pipeline.config.types import SAMPLE
from pipeline.data import split_reader, splits
from pipeline.data.documents import open_documents
from pipeline.errors import UserError
from pipeline.evaluation.metrics import first_sentence, words
from pipeline.inference.run_spec import PLAN_FILES, SPEC_KEY, read_plan
from pipeline.inference.stages.read import ReadWindows
from pipeline.io import memory_limit
from pipeline.io.location import open_location
from pipeline.pages.page import display_text
from pipeline.runs import lease
from pipeline.runs.manifest import OutputFile
from pipeline.runs.publish import read_success
from pipeline.runs.status import run_status
from pipeline.runs.unreadable_files import UnreadableFiles

TOKENIZER = (SAMPLE / "model/tokenizer.model").read_bytes()
MB = 2**20


def read(path: Path, **options: Any) -> list[pa.Table]:
    """Return the windows of an input like a read task."""
    config = DocumentsInput(path=str(path), **options)
    documents = open_documents(config)
    reader = ReadWindows(documents.root.filesystem, 512, None, TOKENIZER, config, 16, b"", UnreadableFiles("fail"))
    windows: list[pa.Table] = []
    for split in splits.cut_splits(documents.files, 512):
        with reader.attempt(split) as stage:
            windows += [window for window, _ in stage.read(split)]
    return windows


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux limits the memory of a process")
def test_a_decompression_bomb_is_an_error_that_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory_limit, "LIMIT_BYTES", 512 * MB)
    text = pa.DictionaryArray.from_arrays(pa.array([0] * 512, pa.int32()), pa.array(["x " * (2 * MB)]))
    path = tmp_path / "bomb.parquet"
    table = pa.table({"id": pa.array(range(512)), "text": text})
    pq.write_table(table, path, compression="zstd", store_schema=False, dictionary_pagesize_limit=2**30)
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match=r"bomb\.parquet"):
        read(path)
    assert read(SAMPLE / "documents/part-0.parquet")  # the limit no longer applies


def test_a_window_contains_only_the_tokens_that_the_model_reads(tmp_path: Path) -> None:
    text = "word " * 200_000
    pq.write_table(pa.table({"id": pa.array(range(16)), "text": [text] * 16}), tmp_path / "long.parquet", compression="zstd")
    [window] = read(tmp_path / "long.parquet")
    assert len(window) == 16
    assert window.nbytes < 200_000


def test_large_rows_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "large.parquet"
    rows = [os.urandom(4 * MB).hex() for _ in range(20)]
    pq.write_table(pa.table({"id": pa.array(range(20)), "text": rows}), path, use_dictionary=False)
    documents = open_documents(DocumentsInput(path=str(path)))
    [split] = splits.cut_splits(documents.files, 512)
    tables = list(split_reader.read_split(split, documents.root.filesystem, ["id", "text"], 512))
    assert max(table.nbytes for table in tables) < 80 * MB
    assert sum(len(table) for table in tables) == 20


def test_a_duplicate_column_is_an_error(tmp_path: Path) -> None:
    table = pa.table({"id": ["a"], "text": ["b"], "id2": ["c"]}).rename_columns(["id", "text", "id"])
    pq.write_table(table, tmp_path / "twice.parquet")
    with pytest.raises(UserError, match=r"'id' .*twice\.parquet"):
        read(tmp_path / "twice.parquet")


@pytest.mark.parametrize("run_id", ["../x", "/etc", "..", "a/b", "", "x\x1b[2J", "a" + "\u202e"])
def test_an_invalid_run_id_is_an_error(run_id: str) -> None:
    for cls, job in ((SummarizeConfig, "summarize"), (VerifyConfig, "verify"), (StatusConfig, "status")):
        with pytest.raises(UserError, match=r"--output\.run_id"):
            load_config(cls, job, [f"--output.run_id={run_id}"])


@pytest.mark.parametrize(
    "path", ["../x.parquet", "/etc/x.parquet", "summaries/run=a/../../../x.parquet", "summaries/run=../x/../y.parquet"]
)
def test_a_manifest_cannot_name_a_file_outside_its_output(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        OutputFile(path=path, rows=1, bytes=1, sha256="")


def test_broken_records_of_a_run_are_errors(tmp_path: Path) -> None:
    output = open_location(str(tmp_path), "--output.path")
    folder = tmp_path / "runs/r"
    folder.mkdir(parents=True)
    for content in ('{"sequence": 1e999}', '{"sequence": -1}', "[" * 100_000, '{"sequence": 99999999999}', "[]"):
        (folder / "_SUCCESS").write_text(content)
        with pytest.raises(UserError, match="_SUCCESS"):
            read_success(output, "r")
    (folder / "_SUCCESS").unlink()
    (folder / "progress.json").write_text('{"run_id": "r", "at": "2026-01-01T00:00:00", "phase": "running", "documents": 1}')
    assert run_status(output, None).progress is None  # a time without zone
    (tmp_path / "lease").mkdir()
    for claim in ("[1]", "{}", "[" * 100_000, json.dumps({"run_id": "r", "machine": 3, "pid": "x", "born": 0, "renewals": 0})):
        (tmp_path / "lease/claim.json").write_text(claim)
        assert lease.current_holder(output) is None


@pytest.mark.parametrize("broken", [{"window_rows": 0}, {"window_rows": -5}, {"started_at": "2026-01-01T00:00:00"}])
def test_a_broken_plan_is_an_error(tmp_path: Path, broken: dict[str, Any]) -> None:
    spec = {
        "started_at": datetime.now(UTC).isoformat(), "input": {}, "model_fingerprint": "", "decoding": {}, "full": False,
        "window_rows": 10, "window_tokens": None, "ledger": 0, "unread": {},
    }  # fmt: skip
    path = tmp_path / "plan.parquet"
    for values, is_valid in ((spec, True), (spec | broken, False)):
        pq.write_table(PLAN_FILES.empty_table().replace_schema_metadata({SPEC_KEY: json.dumps(values)}), path)
        if is_valid:
            assert read_plan(open_location(str(path), "--output.path"))[0] == []
        else:
            with pytest.raises(UserError, match="is broken"):
                read_plan(open_location(str(path), "--output.path"))
    path.write_bytes(path.read_bytes()[:-20] + b"x" * 20)
    with pytest.raises(UserError, match="is broken"):
        read_plan(open_location(str(path), "--output.path"))


def test_texts_cannot_control_the_terminal() -> None:
    console = new_console()
    console.file = io.StringIO()
    console.print("title\x1b]0;owned\x07 \x1b[2J \x9b31m [red]literal[/red]")
    assert not {"\x1b", "\x07", "\x9b"} & set(console.file.getvalue())
    assert "[red]literal[/red]" in console.file.getvalue()
    code = "from pipeline.errors import *; exit_on_user_error('job', lambda: (_ for _ in ()).throw(UserError('\\x1b[2J')))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "\x1b" not in result.stderr


@pytest.mark.parametrize("piece", ["a", ".", " ", "a.", "!?", "'", "://", "\u0301", "1,", "-"])
def test_regular_expressions_are_fast_on_any_text(piece: str) -> None:
    text = piece * (200_000 // len(piece))
    started = time.monotonic()
    words(text)
    first_sentence(text)
    display_text(text)
    assert time.monotonic() - started < 10
