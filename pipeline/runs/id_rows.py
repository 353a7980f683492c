"""Read the ids of an input as hashes with row addresses, divided into hash partitions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from pyarrow import fs

from pipeline import cluster
from pipeline.cluster import LIGHT_CPUS
from pipeline.data.arrow import to_texts
from pipeline.data.hashing import id_keys
from pipeline.data.partition import KeyedRows, partition_rows
from pipeline.data.row_address import ROW_ADDRESS, Addresses
from pipeline.data.split_reader import read_split
from pipeline.data.splits import Split
from pipeline.io.memory_limit import memory_limit
from pipeline.runs.unreadable_files import UnreadableFiles

ID_ROW = np.dtype([("id", "<u8"), ("id_rest", "<u8"), ("address", "<u8")])
"""The 16 bytes of ``hashing.id_keys`` and the row address."""

TASK_ROWS = 500_000
BATCH_ROWS = 16_384


def read_ids(
    splits: Sequence[Split], filesystem: fs.FileSystem, id_column: str, partitions: int, unreadable: UnreadableFiles
) -> list[list[ray.ObjectRef[KeyedRows]]]:
    """Read the rows that have an id, as ``ID_ROW``, in tasks; return one list of partitions per task."""
    read = _read_ids.options(num_returns=partitions)
    by_task = cluster.chunk_by_weight(splits, lambda split: split.rows, TASK_ROWS)
    return [cluster.as_refs(read.remote(chunk, filesystem, id_column, partitions, unreadable)) for chunk in by_task]


@ray.remote(num_cpus=LIGHT_CPUS)
def _read_ids(splits: Sequence[Split], filesystem: Any, id_column: str, partitions: int, unreadable: UnreadableFiles) -> Any:
    pieces: list[list[KeyedRows]] = [[np.empty(0, ID_ROW)] for _ in range(partitions)]
    for split in splits:
        skipped = unreadable.of(split)
        with memory_limit(str(split)):
            for table in read_split(skipped.readable, filesystem, [id_column], BATCH_ROWS, skipped.note):
                rows = id_rows(table[id_column], table[ROW_ADDRESS].to_numpy())
                for partition, piece in zip(pieces, partition_rows(rows, partitions), strict=True):
                    partition.append(piece)
    joined = [np.concatenate(partition) for partition in pieces]
    return joined if partitions > 1 else joined[0]


def id_rows(ids: pa.ChunkedArray, addresses: Addresses) -> KeyedRows:
    """Return the rows whose id is not null as ``ID_ROW``."""
    is_valid = ids.is_valid()
    keys = id_keys(str(value) for value in to_texts(ids.filter(is_valid)))
    rows = np.empty(len(keys), ID_ROW)
    rows["id"], rows["id_rest"], rows["address"] = keys[:, 0], keys[:, 1], addresses[is_valid.to_numpy()]
    return rows
