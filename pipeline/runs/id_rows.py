"""Ids of an input, hashed, with the address of their row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
from pyarrow import fs

from pipeline import cluster
from pipeline.cluster import LIGHT_CPUS
from pipeline.data.arrow import to_texts
from pipeline.data.hashing import id_keys
from pipeline.data.partition import partition_rows
from pipeline.data.row_address import ROW_ADDRESS
from pipeline.data.split_reader import read_split
from pipeline.data.splits import Split
from pipeline.io.memory_limit import memory_limit
from pipeline.runs.unreadable_files import UnreadableFiles

ID_ROW = np.dtype([("id", "<u8"), ("more", "<u8"), ("at", "<u8")])


TASK_ROWS = 500_000


BATCH_ROWS = 16_384


def read_ids(
    units: Sequence[Split],
    filesystem: fs.FileSystem,
    id_column: str,
    parts: int,
    unreadable: UnreadableFiles,
) -> list[list[ray.ObjectRef[npt.NDArray[np.void]]]]:
    """Of each task, the rows that have an id (SEEN), by part."""
    read = _read_ids.options(num_returns=parts)
    some = cluster.chunk_by_weight(units, lambda unit: unit.rows, TASK_ROWS)
    return [cluster.as_refs(read.remote(units, filesystem, id_column, parts, unreadable)) for units in some]


@ray.remote(num_cpus=LIGHT_CPUS)
def _read_ids(units: Sequence[Split], filesystem: Any, id_column: str, parts: int, unreadable: UnreadableFiles) -> Any:
    """Keys and positions of the rows that have an id, by part."""
    divided: list[list[Any]] = [[] for _ in range(parts)]
    for unit in units:
        bad = unreadable.of(unit)
        with memory_limit(str(unit)):
            for table in read_split(bad.readable, filesystem, [id_column], BATCH_ROWS, bad.note):
                for pieces, rows in zip(divided, partition_rows(id_rows(table, id_column), parts), strict=True):
                    pieces.append(rows)
    whole = [np.concatenate(pieces) if pieces else np.empty(0, ID_ROW) for pieces in divided]
    return whole if parts > 1 else whole[0]


def id_rows(rows: pa.Table, id_column: str) -> npt.NDArray[np.void]:
    """Of rows with a ``ROW_ADDRESS`` those that have an id (SEEN)."""
    named = rows.filter(rows[id_column].is_valid())
    seen = np.empty(len(named), ID_ROW)
    keys = id_keys(str(value) for value in to_texts(named[id_column]))
    seen["id"], seen["more"], seen["at"] = keys[:, 0], keys[:, 1], named[ROW_ADDRESS].to_numpy()
    return seen
