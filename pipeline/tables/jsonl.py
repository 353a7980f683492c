"""JSON lines, plain or compressed.

Ray Data's own reader and writer (as of 2.60) go through pandas, which turns "007" into 7, and integers into floats if a column
has a null. Here a column has the same type in all files. The first lines of the first files decide which.

Each delivery writes all summaries into a folder of its own, so that deliveries never conflict, and _SUCCESS last:

    <table>/run=<run_id>/part-00000.jsonl.gz …    <table>/run=<run_id>/_SUCCESS    {"run_id": …, "sequence": n, …}

Readers take the folder whose _SUCCESS has the highest sequence number.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import date, datetime
from decimal import Decimal
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.json as pajson
import ray.data
from pyarrow import fs

from pipeline.config.tables import DeliverOutput, FetchInput
from pipeline.data.arrow import to_values
from pipeline.errors import UserError, describe_error
from pipeline.io.location import Location, StoredFile, open_location
from pipeline.runs.layout import SUCCESS
from pipeline.tables.base import Sink, Summaries, Watermark
from pipeline.tables.ray_source import RaySource
from pipeline.tables.schema import document_schema

_SUFFIXES = tuple(
    f"{name}{compression}" for name in (".jsonl", ".ndjson", ".json") for compression in ("", ".gz", ".bz2", ".zst", ".lz4")
)
_BLOCK_BYTES = 32 * 2**20
"""Bytes that are parsed at a time. No line may be longer."""

_SAMPLED_FILES, _SAMPLE_BYTES = 16, 2**20
_FILE_ROWS, _FILE_CHARS = 50_000, 32 * 2**20
_ARROW_TYPES: dict[type, pa.DataType] = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


@contextmanager
def source(options: FetchInput) -> Iterator[RaySource]:
    """Open the documents of a file or folder. The snapshot is a hash of the files' names, sizes and modification times."""
    if options.snapshot is not None:
        raise UserError("JSON lines have no snapshots; remove --input.snapshot")
    root = open_location(options.table, "--input.table")
    files = [file for file in root.files() if file.path.endswith(_SUFFIXES) and file.size]
    if not files:
        raise UserError(f"there is no file named *{', *'.join(_SUFFIXES[:5])} or similar at {root.uri}; set --input.table")
    listing = [[file.path, file.size, str(file.modified)] for file in files]
    schema = document_schema(_infer_schema(root, files), options)
    if nested := [field.name for field in schema if pa.types.is_null(field.type)]:
        raise UserError(f"column {nested[0]!r} of {root.uri} has lists or objects; remove it from --input.keep_columns")
    read = partial(_read_files, filesystem=root.filesystem, schema=schema)
    paths = [{"path": file.path} for file in files]
    yield RaySource(
        snapshot=hashlib.sha256(json.dumps(listing).encode()).hexdigest()[:16],
        schema=schema,
        rows=None,
        filter=options.filter,
        open_dataset=lambda: ray.data.from_items(paths, override_num_blocks=len(paths)).map_batches(
            read, batch_format="pyarrow", batch_size=1
        ),
    )


def _read_files(batch: pa.Table, filesystem: fs.FileSystem, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yield the rows of the files in column "path". A field that a line does not have is null."""
    options = pajson.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False)
    parse = pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    for path in batch["path"].to_pylist():
        try:
            with (
                filesystem.open_input_stream(path, compression="detect") as stream,
                pajson.open_json(stream, read_options=options, parse_options=parse) as reader,
            ):
                for rows in reader:
                    yield pa.Table.from_batches([rows])
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"cannot read {path}: {describe_error(error)}; repair it: a field must have one type in all lines of all files"
            ) from None


def _infer_schema(root: Location, files: Sequence[StoredFile]) -> pa.Schema:
    """Return the types of all columns in the first lines of the first files. Lists and objects have type null."""
    types: dict[str, pa.DataType] = {}
    names: dict[str, None] = {}
    for file in files[:_SAMPLED_FILES]:
        for number, line in enumerate(_first_lines(root, file), 1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"a {type(row).__name__}, not an object")
            except ValueError as error:
                raise UserError(f"line {number} of {file.path} is not usable JSON: {error}; repair it") from None
            names |= dict.fromkeys(row)
            for name, value in row.items():
                if value is not None:
                    dtype = _ARROW_TYPES.get(type(value), pa.null())
                    if {types.setdefault(name, dtype), dtype} == {pa.int64(), pa.float64()}:
                        types[name] = pa.float64()
    return pa.schema([(name, types.get(name, pa.string())) for name in names])


def _first_lines(root: Location, file: StoredFile) -> Iterator[bytes]:
    """Return the complete lines in a file's first ``_SAMPLE_BYTES``, and the first line however long it is."""
    try:
        with root.filesystem.open_input_stream(file.path, compression="detect") as stream:
            head = stream.read(_SAMPLE_BYTES)
            if len(head) == _SAMPLE_BYTES:
                complete = head.rpartition(b"\n")[0]
                head = complete or (head + stream.read(_BLOCK_BYTES)).partition(b"\n")[0]
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {file.path}: {describe_error(error)}; repair or remove it") from None
    return (line for line in head.splitlines() if line.strip())


def sink(options: DeliverOutput) -> AbstractContextManager[JsonLinesSink]:
    return nullcontext(JsonLinesSink(options))


class JsonLinesSink(Sink):
    keeps_all = True

    def __init__(self, options: DeliverOutput) -> None:
        self._folder = open_location(options.table, "--output.table")
        self.watermark = max(_read_watermarks(self._folder), key=lambda watermark: watermark.sequence, default=None)

    def deliver(self, summaries: Summaries, watermark: Watermark) -> bool:
        """Write all rows, then the watermark. Overwrites or removes what a killed delivery has left."""
        folder = self._folder.child(f"run={watermark.run_id}")
        written = set[str]()
        for number, content in enumerate(_encode_files(summaries)):
            name = f"part-{number:05}.jsonl.gz"
            folder.child(name).write(gzip.compress(content, mtime=0))
            written.add(name)
        for name in folder.names():
            if name.startswith("part-") and name not in written:
                folder.child(name).remove()
        folder.child(SUCCESS).write(watermark.model_dump_json().encode() + b"\n")
        return True


def _read_watermarks(folder: Location) -> Iterator[Watermark]:
    for name in folder.names():
        if name.startswith("run=") and (marker := folder.child(name).child(SUCCESS)).exists():
            try:
                yield Watermark.model_validate_json(marker.read())
            except ValueError:
                raise UserError(f"{marker.uri} is not a file of jobs.deliver; set another --output.table") from None


def _encode_files(summaries: Summaries) -> Iterator[bytes]:
    lines, chars = list[str](), 0
    for batch in summaries.batches(summaries.schema):
        for values in zip(*map(to_values, batch.columns), strict=True):
            lines.append(_to_line(dict(zip(batch.schema.names, values, strict=True))))
            chars += len(lines[-1])
            if len(lines) == _FILE_ROWS or chars >= _FILE_CHARS:
                yield "".join(lines).encode()
                lines, chars = [], 0
    if lines:
        yield "".join(lines).encode()


def _to_line(row: Any) -> str:
    try:
        return json.dumps(row, ensure_ascii=False, default=_to_json, allow_nan=False) + "\n"
    except ValueError:  # NaN or infinity, which JSON does not have
        return json.dumps(_replace_non_finite(row), ensure_ascii=False, default=_to_json) + "\n"


def _replace_non_finite(value: Any) -> Any:
    """Return the value with null for each NaN and infinity in it."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _replace_non_finite(item) for name, item in value.items()}
    return [_replace_non_finite(item) for item in value] if isinstance(value, list) else value


def _to_json(value: Any) -> str:
    """Return a time as ISO 8601, a decimal as digits, and bytes as base 64."""
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(type(value).__name__)
