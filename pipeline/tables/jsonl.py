"""JSON lines, in files of their own or compressed.

Not by Ray Data's own reader and writer (as of 2.60), which go through pandas: "007" becomes 7 there, and whole numbers beside a
null become floats. A column has one type in all files, which the heads of some of them say.

Summaries go to a folder for each delivery, all that there are, and a _SUCCESS that is written last:

    <table>/run=<run_id>/part-00000.jsonl.gz …    <table>/run=<run_id>/_SUCCESS    {"run_id": …, "sequence": n, …}

The folder with _SUCCESS and the highest sequence is the one to read. Deliveries write folders of their own, so that none is in
another's way.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
from pipeline.tables.base import OneMark, Summaries, Watermark
from pipeline.tables.ray_source import RaySource
from pipeline.tables.schema import document_schema

_ENDINGS = tuple(
    f"{name}{compressed}" for name in (".jsonl", ".ndjson", ".json") for compressed in ("", ".gz", ".bz2", ".zst", ".lz4")
)
_BLOCK_BYTES = 32 * 2**20
"""Parsed at a time; no line may be longer."""
_HEADS, _HEAD_BYTES = 16, 2**20
_ROWS_OF_A_FILE, _CHARS_OF_A_FILE = 50_000, 32 * 2**20
_KINDS: dict[type, pa.DataType] = {str: pa.string(), bool: pa.bool_(), int: pa.int64(), float: pa.float64()}


@contextmanager
def source(options: FetchInput) -> Iterator[RaySource]:
    """The documents of the files as they are; the snapshot is a sum over their names, sizes and times of change."""
    if options.snapshot is not None:
        raise UserError("JSON lines have no snapshots; take --input.snapshot away")
    root = open_location(options.table, "--input.table")
    files = [file for file in root.files() if file.path.endswith(_ENDINGS) and file.size]
    if not files:
        raise UserError(f"{root.uri} is or holds no file named {', '.join(_ENDINGS[:5])} and so on; set --input.table")
    seen = [[file.path, file.size, str(file.modified)] for file in files]
    schema = document_schema(_schema(root, files), options)
    if nested := [field.name for field in schema if pa.types.is_null(field.type)]:
        raise UserError(
            f"column {nested[0]!r} of {root.uri} has lists or objects, which cannot be kept; set --input.keep_columns"
        )
    read = partial(_read, filesystem=root.filesystem, schema=schema)
    paths = [{"path": file.path} for file in files]
    yield RaySource(
        hashlib.sha256(json.dumps(seen).encode()).hexdigest()[:16],
        schema,
        None,
        options.filter,
        lambda: ray.data.from_items(paths, override_num_blocks=len(paths)).map_batches(
            read, batch_format="pyarrow", batch_size=1
        ),
    )


def _read(batch: pa.Table, filesystem: fs.FileSystem, schema: pa.Schema) -> Iterator[pa.Table]:
    """The rows of files. A field that a line lacks is null."""
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
                f"cannot read {path}: {describe_error(error)}; mend it: all lines of all files have the same types"
            ) from None


def _schema(root: Location, files: Sequence[StoredFile]) -> pa.Schema:
    """Of all columns, by the first lines of the first files."""
    kinds: dict[str, pa.DataType] = {}
    names: dict[str, None] = {}
    for file in files[:_HEADS]:
        for number, line in enumerate(_head(root, file), 1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError(f"a {type(row).__name__}, not an object")
            except ValueError as error:
                raise UserError(f"line {number} of {file.path} is not JSON that can be used: {error}; mend it") from None
            names |= dict.fromkeys(row)
            for name, value in row.items():
                if value is not None:
                    kind = _KINDS.get(type(value), pa.null())  # of lists and objects: nothing that is read
                    before = kinds.setdefault(name, kind)
                    if {before, kind} == {pa.int64(), pa.float64()}:
                        kinds[name] = pa.float64()
    return pa.schema([(name, kinds.get(name, pa.string())) for name in names])


def _head(root: Location, file: StoredFile) -> Iterator[bytes]:
    """The lines of a file's first bytes, without one that they cut; at least the first line."""
    try:
        with root.filesystem.open_input_stream(file.path, compression="detect") as stream:
            head = stream.read(_HEAD_BYTES)
            if len(head) == _HEAD_BYTES:
                whole = head.rpartition(b"\n")[0]
                head = whole or (head + stream.read(_BLOCK_BYTES)).partition(b"\n")[0]
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {file.path}: {describe_error(error)}; mend it") from None
    return (line for line in head.splitlines() if line.strip())


@contextmanager
def sink(options: DeliverOutput) -> Iterator[JsonLinesSink]:
    """A folder that summaries are delivered to."""
    yield JsonLinesSink(options)


class JsonLinesSink(OneMark):
    """See store.Sink."""

    keeps_all = True

    def __init__(self, options: DeliverOutput) -> None:
        self._folder = open_location(options.table, "--output.table")
        self._mark = max(_marks(self._folder), key=lambda mark: mark.sequence, default=None)

    def deliver(self, summaries: Summaries, mark: Watermark) -> bool:
        """Write all rows, and then the mark. What a delivery that was cut off has written is written over, or removed."""
        folder = self._folder.child(f"run={mark.run_id}")
        written = set[str]()
        for number, lines in enumerate(_files(summaries)):
            name = f"part-{number:05}.jsonl.gz"
            folder.child(name).write(gzip.compress(lines, mtime=0))
            written.add(name)
        for name in folder.names() if folder.exists() else []:  # of an output folder that was made anew since
            if name.startswith("part-") and name not in written:
                folder.child(name).remove()
        folder.child(SUCCESS).write(mark.model_dump_json().encode() + b"\n")
        return True


def _marks(folder: Location) -> Iterator[Watermark]:
    for name in folder.names() if folder.exists() else []:
        if name.startswith("run=") and (marker := folder.child(name).child(SUCCESS)).exists():
            try:
                yield Watermark.model_validate_json(marker.read())
            except ValueError:
                raise UserError(f"{marker.uri} is not what a delivery writes; set another --output.table") from None


def _files(summaries: Summaries) -> Iterator[bytes]:
    """The lines of each file."""
    lines, chars = list[str](), 0
    for batch in summaries.batches(summaries.schema):
        for values in zip(*map(to_values, batch.columns), strict=True):
            row = dict(zip(batch.schema.names, values, strict=True))
            try:
                lines.append(_as_line(row))
            except ValueError:
                lines.append(_as_line(_finite(row)))
            chars += len(lines[-1])
            if len(lines) == _ROWS_OF_A_FILE or chars >= _CHARS_OF_A_FILE:
                yield _joined(lines)
                lines, chars = [], 0
    if lines:
        yield _joined(lines)


def _joined(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()


def _as_line(row: Any) -> str:
    """Raises ValueError for what JSON has no word for: NaN and infinities."""
    return json.dumps(row, ensure_ascii=False, default=_as_json, allow_nan=False)


def _finite(value: Any) -> Any:
    """With null in the place of those."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {name: _finite(of_name) for name, of_name in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def _as_json(value: Any) -> str:
    """Times as ISO 8601 has them, decimals in digits, bytes in base 64."""
    if isinstance(value, date | datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Decimal):
        return str(value)
    raise TypeError(type(value).__name__)
