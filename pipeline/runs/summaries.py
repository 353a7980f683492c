"""Read the latest summary of each document over the finished runs of an output folder.

    runs, newest first ──> files, a few read ahead ──> rows whose id no newer run has ──> columns of all runs

Knows the layout of the output only; needs no Ray and no model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.arrow import to_texts
from pipeline.data.hashing import Keys, id_keys
from pipeline.errors import UserError, describe_error
from pipeline.io.location import Location, open_location
from pipeline.io.parallel import map_ahead
from pipeline.runs.layout import SUMMARIES, parts_path
from pipeline.runs.publish import finished_runs

RUN_COLUMN = "run"
"""Name of the added column that holds the run id of a row."""

_FILES_AHEAD = 8

_EXACT_BITS = {pa.float16(): 11, pa.float32(): 24, pa.float64(): 53}
"""Bits of the integers that a float type holds exactly."""


@dataclass(frozen=True)
class _RunFiles:
    """The summaries of one run; the first column of the schema is the id."""

    run_id: str
    files: Sequence[str]
    schema: pa.Schema


def read_summaries(output: str, after: int = 0, up_to: int | None = None) -> pa.RecordBatchReader:
    """Implement ``pipeline.read_summaries``, for the runs with ``after`` < sequence number <= ``up_to``."""
    folder = open_location(output, "the output folder")
    finished = [run for run in finished_runs(folder) if after < run.sequence <= (up_to or run.sequence)]
    if not finished:
        raise UserError(f"no run is finished in {output}; name a folder that jobs.summarize wrote")
    opened = map_ahead(lambda run: _open_run(folder, run.run_id), reversed(finished))
    runs = [run for run in opened if run is not None]
    schema = _common_schema(runs)
    return pa.RecordBatchReader.from_batches(schema, _read_latest(folder, runs, schema))


def _open_run(output: Location, run_id: str) -> _RunFiles | None:
    """Return the files of a run; None if it wrote no summaries."""
    folder = output.child(parts_path(SUMMARIES, run_id))
    files = [file.path for file in folder.files() if file.path.endswith(".parquet")] if folder.exists() else []
    if not files:
        return None
    try:
        return _RunFiles(run_id, files, pq.read_schema(files[0], filesystem=output.filesystem).remove_metadata())
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(files[0], error) from None


def _unreadable(path: str, error: Exception) -> UserError:
    return UserError(f"cannot read {path}: {describe_error(error)}; check the run with jobs.verify")


# Columns


def _common_schema(runs: Sequence[_RunFiles]) -> pa.Schema:
    """Return the id column, the other columns of all runs, which come newest first, and ``RUN_COLUMN``."""
    fields: dict[str, pa.Field] = {}
    first_runs: dict[str, str] = {}
    id_column = runs[0].schema.names[0] if runs else ""
    for run in runs:
        for index, field in enumerate(run.schema):
            name = id_column if index == 0 else field.name
            if name == RUN_COLUMN or (index and name == id_column):
                raise UserError(f"column {name!r} of run {run.run_id} has a reserved name; rename it in the input")
            common = fields.setdefault(name, field.with_name(name).with_nullable(True))
            first_run = first_runs.setdefault(name, run.run_id)
            fields[name] = common.with_type(_common_type(name, (first_run, common.type), (run.run_id, field.type)))
    return pa.schema([*fields.values(), pa.field(RUN_COLUMN, pa.string())])


def _common_type(column: str, first: tuple[str, pa.DataType], second: tuple[str, pa.DataType]) -> pa.DataType:
    """Return the narrowest type that holds all values of two runs, given as (run id, type). Raises UserError if none does."""
    (first_run, first_type), (second_run, second_type) = first, second
    try:
        schemas = [pa.schema([(column, data_type)]) for data_type in (first_type, second_type)]
        common = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
        if _is_exact(common, first_type) and _is_exact(common, second_type):
            return common
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        pass
    raise UserError(
        f"column {column!r} is {first_type} in run {first_run} but {second_type} in run {second_run}, and no type holds the "
        f"values of both; read the files of one run only: {parts_path(SUMMARIES, first_run)}"
    )


def _is_exact(common: pa.DataType, data_type: pa.DataType) -> bool:
    """Return whether ``common`` holds all integers of a type: Arrow promotes integers to floats of any size."""
    if not pa.types.is_integer(data_type):
        return True
    bits = data_type.bit_width - pa.types.is_signed_integer(data_type)
    if pa.types.is_integer(common):
        return bool(bits <= common.bit_width - pa.types.is_signed_integer(common))
    return bool(bits <= _EXACT_BITS.get(common, 64))


def _align(rows: pa.Table, run: _RunFiles, path: str, schema: pa.Schema) -> pa.Table:
    """Return the rows of a file with the columns of all runs."""
    rows = rows.rename_columns([schema.names[0], *rows.column_names[1:]])
    columns = []
    for field in schema:
        if field.name == RUN_COLUMN:
            columns.append(pa.repeat(run.run_id, len(rows)))
        elif field.name not in rows.column_names:
            columns.append(pa.nulls(len(rows), field.type))
        else:
            try:
                columns.append(rows[field.name].cast(field.type))
            except pa.ArrowException as error:
                raise UserError(f"column {field.name!r} of {path} is not {field.type}: {describe_error(error)}") from None
    return pa.table(columns, schema)


# Rows


def _read_latest(output: Location, runs: Sequence[_RunFiles], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    newer_ids = IdSet()
    for run in runs:
        run_ids: list[Keys] = []
        for path, rows in _read_ahead(output, run.files):
            keys = id_keys(str(value) for value in to_texts(rows.column(0)))
            is_latest = ~newer_ids.contains(keys)
            if run is not runs[-1]:
                run_ids.append(keys[is_latest])
            yield from _align(rows.filter(pa.array(is_latest)), run, path, schema).to_batches()
        if run_ids:
            newer_ids.add(np.concatenate(run_ids))


def _read_ahead(output: Location, paths: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    """Yield each path and its rows, in order."""

    def read(path: str) -> pa.Table:
        try:
            with pq.ParquetFile(path, filesystem=output.filesystem) as file:
                return file.read(use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(path, error) from None

    yield from zip(paths, map_ahead(read, paths, _FILES_AHEAD, _FILES_AHEAD), strict=True)


class IdSet:
    """A set of 16-byte id keys, in sorted arrays each at least twice as large as the next, so that there are few to search."""

    def __init__(self) -> None:
        self._pieces: list[Keys] = []

    def add(self, keys: Keys) -> None:
        """Add N keys [N, 2] that are not in the set."""
        while self._pieces and len(self._pieces[-1]) < 2 * len(keys):
            keys = np.concatenate((self._pieces.pop(), keys))
        # Fortran order makes a column contiguous; otherwise each search would copy it.
        self._pieces.append(np.asfortranarray(keys[np.lexsort((keys[:, 1], keys[:, 0]))]))

    def contains(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Return which of N keys [N, 2] are in the set [N]."""
        is_member = np.zeros(len(keys), np.bool_)
        for piece in self._pieces:
            indices = np.searchsorted(piece[:, 0], keys[:, 0])
            # Keys with the same first half are adjacent; there is rarely more than one.
            while True:
                is_inside = indices < len(piece)
                is_same = np.zeros(len(keys), np.bool_)
                is_same[is_inside] = piece[indices[is_inside], 0] == keys[is_inside, 0]
                if not is_same.any():
                    break
                is_member[is_same] |= piece[indices[is_same], 1] == keys[is_same, 1]
                indices = indices + is_same
        return is_member
