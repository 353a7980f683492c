"""Read the latest summaries of an output folder of jobs.summarize, joined by id with their documents, as rows.

    summaries, rejects ──> files by hash of the id ──┐
    documents ───────────> files by hash of the id ──┴──> one pair of files at a time ──> rows

Documents are those of the last finished run, whose files must not have changed since. A document that a later run rejected has
changed since its summary, so it gives no row. Memory holds the summaries of one of 64 files; the scratch files hold all texts.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from pipeline.config.base import describe_validation_error
from pipeline.data.arrow import to_values
from pipeline.data.hashing import id_keys
from pipeline.data.partition import partition_of
from pipeline.errors import UserError, describe_error
from pipeline.io.location import Location, open_location
from pipeline.prepare.files import STORES
from pipeline.prepare.rows import RowStream
from pipeline.runs.layout import LEDGER, MANIFEST, REJECTS, RUNS, SUMMARIES, parts_path, run_folder
from pipeline.runs.manifest import Manifest
from pipeline.runs.publish import finished_runs
from pipeline.runs.summaries import RUN_COLUMN, read_summaries

RUN_PAIR_COLUMNS = {"id_column": "id", "source_column": "source", "target_column": "target", "style_column": None}
"""Options of the rows that ``read_run_pairs`` yields."""

_PARTITIONS = 64
_BATCH_ROWS, _BUFFER_BYTES = 256, 64 * 2**20
_MAX_ERROR_CHARS = 300
_SUMMARY_COLUMNS = ["summary", "score", "finish_reason", RUN_COLUMN]


def is_run_output(path: str, option: str) -> bool:
    """Return whether a path or URI is an output folder of jobs.summarize."""
    if "::" in path or ("://" in path and not path.startswith(STORES)) or ("://" not in path and not Path(path).is_dir()):
        return False
    folder = open_location(path, option)
    return all(folder.child(name).exists() for name in (RUNS, SUMMARIES, LEDGER))


def read_run_pairs(path: str, option: str, scratch: Path) -> RowStream:
    """Yield rows with the columns id, source, target, score and finish_reason, and where each summary is from.

    Args:
        path: The output folder, a path or URI.
        option: Option that sets it, for messages.
        scratch: Folder for scratch files. It is created, and removed after the last row.

    Raises:
        UserError: No run is finished, or the documents of the last one cannot be read or have changed.
    """
    output = open_location(path, option)
    runs = finished_runs(output)
    if not runs:
        raise UserError(f"no run is finished in {path}; set {option} to a folder that jobs.summarize has written")
    manifest = _read_manifest(output, runs[-1].run_id)
    summaries = _Partitions(scratch / "summaries", ["id", *_SUMMARY_COLUMNS])
    rejects = _Partitions(scratch / "rejects", ["id", RUN_COLUMN])
    documents = _Partitions(scratch / "documents", ["id", "text"])
    for batch in read_summaries(path):
        summaries.add([_strings(batch.column(0)), *(_strings(batch.column(name)) for name in _SUMMARY_COLUMNS)])
    for run in runs:
        for ids in _read_rejects(output, run.run_id):
            rejects.add([ids, [run.run_id] * len(ids)])
    for rows in _read_documents(manifest, path, option):
        documents.add(rows)
    sequences = {run.run_id: run.sequence for run in runs}
    for number in range(_PARTITIONS):
        by_id = {row["id"]: row for row in summaries.read(number)}
        for row in rejects.read(number):
            if row["id"] in by_id and sequences[row[RUN_COLUMN]] > sequences[by_id[row["id"]][RUN_COLUMN]]:
                del by_id[row["id"]]
        for document in documents.read(number):
            if (summary := by_id.pop(document["id"], None)) is not None:
                yield f"{path} document {document['id']}", _row(document, summary)
    shutil.rmtree(scratch, ignore_errors=True)


def _row(document: dict[str, str], summary: dict[str, str]) -> dict[str, Any]:
    return {
        "id": document["id"],
        "source": document["text"],
        "target": summary["summary"],
        "score": float(summary["score"]),
        "finish_reason": summary["finish_reason"],
    }


def _strings(column: pa.Array[Any]) -> list[str]:
    return [str(value) for value in to_values(column)]


def _read_manifest(output: Location, run_id: str) -> Manifest:
    file = run_folder(output, run_id).child(MANIFEST)
    try:
        return Manifest.model_validate_json(file.read())
    except ValidationError as error:
        raise UserError(
            f"{file.uri} is broken: {describe_validation_error(error)[:_MAX_ERROR_CHARS]}; check the run with jobs.verify"
        ) from None


def _read_rejects(output: Location, run_id: str) -> Iterator[list[str]]:
    """Yield ids of the documents that a run rejected. One with reason duplicate_id is an additional row of another document."""
    folder = output.child(parts_path(REJECTS, run_id))
    for file in folder.files() if folder.exists() else []:
        try:
            rows = pq.read_table(file.path, filesystem=output.filesystem, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"cannot read {file.path}: {describe_error(error)}; check the run with jobs.verify") from None
        ids, reasons = to_values(rows.column(0)), to_values(rows["reason"])
        yield [str(value) for value, reason in zip(ids, reasons, strict=True) if value is not None and reason != "duplicate_id"]


def _read_documents(manifest: Manifest, path: str, option: str) -> Iterator[list[list[str]]]:
    """Yield ids and texts of the input of a run, except nulls and what the run could not read either."""
    options = manifest.config["input"]
    columns = [options["id_column"], options["text_column"]]
    filesystem = open_location(options["path"], option).filesystem  # the path may be relative to another working directory
    for file in manifest.input_files:
        try:
            [info] = filesystem.get_file_info([file.path])
            if (info.size, info.mtime) != (file.bytes, file.modified):
                raise UserError(
                    f"{file.path} has changed or is missing since run {manifest.run_id} of {path}; run jobs.summarize again, "
                    "so that its summaries are those of its documents"
                )
            with pq.ParquetFile(file.path, filesystem=filesystem) as parquet:
                for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns):
                    ids, texts = (to_values(batch.column(name)) for name in columns)
                    complete = [row for row in zip(ids, texts, strict=True) if None not in row]
                    yield [[str(value) for value, _ in complete], [text for _, text in complete]]
        except (OSError, pa.ArrowException) as error:
            if file.path not in manifest.unread:
                raise UserError(f"cannot read {file.path}: {describe_error(error)}; repair it") from None


class _Partitions:
    """Scratch files of rows, divided by a hash of the id, the first column."""

    def __init__(self, folder: Path, columns: Sequence[str]) -> None:
        self._folder, self._schema = folder, pa.schema([(name, pa.large_string()) for name in columns])
        self._buffer: list[pa.Table] = []
        folder.mkdir(parents=True)

    def add(self, columns: Sequence[Sequence[str]]) -> None:
        """Add rows, given by column. Raises UserError if the scratch files cannot be written."""
        arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
        self._buffer.append(pa.table(arrays, self._schema))
        if sum(table.nbytes for table in self._buffer) > _BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        """Append the buffered rows to their files."""
        rows = pa.concat_tables([self._schema.empty_table(), *self._buffer])
        numbers = partition_of(id_keys(rows["id"].to_pylist())[:, 0], _PARTITIONS)
        try:
            for number in np.unique(numbers).tolist():
                # One Arrow stream after another: each marks its end, so no file stays open.
                with (self._folder / str(number)).open("ab") as sink, pa.ipc.new_stream(sink, self._schema) as writer:
                    writer.write_table(rows.filter(pa.array(numbers == number)))
        except OSError as error:
            raise UserError(f"cannot write {self._folder}: {describe_error(error)}; free space on its disk") from None
        self._buffer = []

    def read(self, number: int) -> Iterator[dict[str, str]]:
        """Yield the rows of a file, which must be read after all rows are added."""
        self._flush()
        file = self._folder / str(number)
        if not file.exists():
            return
        with file.open("rb") as source:
            while source.peek(1):
                for batch in pa.ipc.open_stream(source):
                    yield from batch.to_pylist()
