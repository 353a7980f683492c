"""The latest summary of each document, over all published runs of an output folder.

    runs, the newest first ── files, a few ahead ── rows whose id no newer run has ── the columns of all runs

Knows what the output looks like, not how it came to be: no Ray, no model.
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

RUN = "run"
"""The column that says which run a row is of."""
_FILES_AHEAD = 8
"""Read before they are asked for: each holds a window, and takes a while to answer."""
_EXACT_BITS = {pa.float16(): 11, pa.float32(): 24, pa.float64(): 53}
"""Integers of so many bits are floats of that type without loss."""


@dataclass(frozen=True)
class _RunFiles:
    """A run with summaries. schema: of each file; its first column is the id."""

    run_id: str
    files: Sequence[str]
    schema: pa.Schema


def read_summaries(output: str, after: int = 0, up_to: int | None = None) -> pa.RecordBatchReader:
    """What ``pipeline.read_summaries`` does, and says that it does; of runs whose sequence is above one and up to another."""
    folder = open_location(output, "the output folder")
    finished = [run for run in finished_runs(folder) if after < run.sequence <= (up_to or run.sequence)]
    if not finished:
        raise UserError(f"no run is finished in {output}; name a folder that jobs.summarize wrote")
    found = map_ahead(lambda run: _open_run(folder, run.run_id), reversed(finished))
    runs = [run for run in found if run is not None]
    schema = _common_schema(runs)
    return pa.RecordBatchReader.from_batches(schema, _latest(folder, runs, schema))


def _open_run(output: Location, run_id: str) -> _RunFiles | None:
    """None where it wrote no summary."""
    folder = output.child(parts_path(SUMMARIES, run_id))
    files = [file.path for file in folder.files() if file.path.endswith(".parquet")] if folder.exists() else []
    if not files:
        return None
    try:
        return _RunFiles(run_id, files, pq.read_schema(files[0], filesystem=output.filesystem).remove_metadata())
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(files[0], error) from None


def _unreadable(path: str, error: Exception) -> UserError:
    return UserError(f"cannot read {path}: {describe_error(error)}; jobs.verify says what else is not as it was written")


# Columns


def _common_schema(runs: Sequence[_RunFiles]) -> pa.Schema:
    """Of the runs, the newest first: the id, the columns of each, and ``RUN``."""
    fields: dict[str, pa.Field] = {}
    first: dict[str, str] = {}
    for run in runs:
        for at, field in enumerate(run.schema):
            name = runs[0].schema.names[0] if at == 0 else field.name
            if name == RUN or (at and name == runs[0].schema.names[0]):
                raise UserError(f"run {run.run_id} has a column {name!r} beside that of the same name; rename it in the input")
            before = fields.setdefault(name, field.with_name(name).with_nullable(True))
            fields[name] = before.with_type(
                _common_type(name, before.type, first.setdefault(name, run.run_id), field.type, run)
            )
    return pa.schema([*fields.values(), pa.field(RUN, pa.string())])


def _common_type(name: str, kind: pa.DataType, run_id: str, other: pa.DataType, other_run: _RunFiles) -> pa.DataType:
    """The narrowest type that holds all values of two. Raises UserError if there is none."""
    try:
        schemas = [pa.schema([(name, kind)]), pa.schema([(name, other)])]
        common = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
        if all(_is_exact(common, one) for one in (kind, other)):
            return common
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        pass
    raise UserError(
        f"column {name!r} is {kind} in run {run_id} but {other} in run {other_run.run_id}, and no type holds the values of "
        f"both; read one run's files alone: {parts_path(SUMMARIES, run_id)}"
    )


def _is_exact(common: pa.DataType, kind: pa.DataType) -> bool:
    """Arrow takes a float for the common type of integers and floats, whatever their size."""
    if not pa.types.is_integer(kind):
        return True
    bits = kind.bit_width - pa.types.is_signed_integer(kind)
    if pa.types.is_integer(common):
        return bool(bits <= common.bit_width - pa.types.is_signed_integer(common))
    return bool(bits <= _EXACT_BITS.get(common, 64))


def _align(rows: pa.Table, run: _RunFiles, path: str, schema: pa.Schema) -> pa.Table:
    """A file's rows in the columns of all runs."""
    rows = rows.rename_columns([schema.names[0], *rows.column_names[1:]])
    columns = []
    for field in schema:
        if field.name == RUN:
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


def _latest(output: Location, runs: Sequence[_RunFiles], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    newer = _IdSet()
    for run in runs:
        own: list[Keys] = []
        for path, rows in _read_ahead(output, run.files):
            keys = id_keys(str(value) for value in to_texts(rows.column(0)))
            new = ~newer.have(keys)
            if run is not runs[-1]:
                own.append(keys[new])
            yield from _align(rows.filter(pa.array(new)), run, path, schema).to_batches()
        if own:
            newer.add(np.concatenate(own))


def _read_ahead(output: Location, paths: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    """Files and their rows, in order; of some the rows are read already."""

    def read(path: str) -> pa.Table:
        try:
            with pq.ParquetFile(path, filesystem=output.filesystem) as file:
                return file.read(use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(path, error) from None

    yield from zip(paths, map_ahead(read, paths, _FILES_AHEAD, _FILES_AHEAD), strict=True)


class _IdSet:
    """Keys of ids, 16 bytes each, in sorted pieces of which each is twice as large as the next or larger: few to look into."""

    def __init__(self) -> None:
        self._pieces: list[Keys] = []

    def add(self, keys: Keys) -> None:
        """Keys [N, 2] of which none is there yet."""
        while self._pieces and len(self._pieces[-1]) < 2 * len(keys):
            keys = np.concatenate((self._pieces.pop(), keys))
        # By column, or each search would copy the halves that it looks into.
        self._pieces.append(np.asfortranarray(keys[np.lexsort((keys[:, 1], keys[:, 0]))]))

    def have(self, keys: Keys) -> npt.NDArray[np.bool_]:
        """Which of N keys [N, 2] are there [N]."""
        found = np.zeros(len(keys), np.bool_)
        for piece in self._pieces:
            at = np.searchsorted(piece[:, 0], keys[:, 0])
            # A few places at most hold the same first half: one, but for a chance of 3 % in a billion ids.
            while True:
                inside = at < len(piece)
                same = np.zeros(len(keys), np.bool_)
                same[inside] = piece[at[inside], 0] == keys[inside, 0]
                if not same.any():
                    break
                found[same] |= piece[at[same], 1] == keys[same, 1]
                at = at + same
        return found
