"""Check the ids of an input before a run: find rows that repeat an id, and ids of earlier runs that the input has lost.

    splits ── hashed ids ──┬── partition 0: sorted, compared with the ledger's ids ──┬── duplicate rows, missing ids
                           ├── partition 1 …                                        │
                           └── …                                                    ┘

24 bytes a document pass through Ray's object store, and none through the driver. Nothing here waits for the tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from pyarrow import fs

from pipeline.cluster import LIGHT_CPUS
from pipeline.data.hashing import Keys
from pipeline.data.partition import KeyedRows, partition_count, partition_of
from pipeline.data.splits import Split
from pipeline.runs.id_rows import ID_ROW, read_ids
from pipeline.runs.ledger import Entries, Ledger
from pipeline.runs.unreadable_files import UnreadableFiles

DUPLICATE = np.dtype([("address", "<u8"), ("first", "<u8")])
"""Row addresses of a row and of the first row with its id."""


@dataclass(frozen=True)
class IdCheck:
    """Result of comparing the ids of an input with the ledger.

    Attributes:
        duplicates: Rows whose id an earlier row has, as ``DUPLICATE``, sorted by address.
        missing: By partition, keys of ids that are in the ledger but not in the input.
    """

    duplicates: ray.ObjectRef[KeyedRows]
    missing: Sequence[ray.ObjectRef[Keys]]


def check_ids(
    splits: Sequence[Split], filesystem: fs.FileSystem, id_column: str, ledger: Ledger, unreadable: UnreadableFiles
) -> IdCheck:
    """Start the tasks that read the ids of an input and compare them with each other and with the ledger."""
    partitions = max(len(ledger.parts), partition_count(sum(split.rows for split in splits)))
    by_task = read_ids(splits, filesystem, id_column, partitions, unreadable)
    checked = []
    for partition in range(partitions):
        # Both numbers are powers of two, so several partitions of the input may share one of the ledger.
        entries = ledger.parts[partition * len(ledger.parts) // partitions] if ledger.parts else None
        pieces = [refs[partition] for refs in by_task]
        checked.append(_check_partition.options(num_returns=2).remote(partition, partitions, entries, *pieces))
    duplicates = _sort_duplicates.remote(*(duplicates for duplicates, _ in checked))
    return IdCheck(duplicates, [missing for _, missing in checked])


@ray.remote(num_cpus=LIGHT_CPUS)
def _check_partition(partition: int, partitions: int, entries: Entries | None, *pieces: Any) -> tuple[Any, Any]:
    """Return the duplicate rows of a partition, and the keys of the ledger's ids that it lacks."""
    rows = np.concatenate(pieces) if pieces else np.empty(0, ID_ROW)
    rows = rows[np.lexsort((rows["address"], rows["id_rest"], rows["id"]))]
    is_duplicate = np.zeros(len(rows), np.bool_)
    is_duplicate[1:] = (rows["id"][1:] == rows["id"][:-1]) & (rows["id_rest"][1:] == rows["id_rest"][:-1])
    first = np.maximum.accumulate(np.where(is_duplicate, 0, np.arange(len(rows))))
    duplicates = np.empty(int(is_duplicate.sum()), DUPLICATE)
    duplicates["address"], duplicates["first"] = rows["address"][is_duplicate], rows["address"][first[is_duplicate]]
    if entries is None:
        return duplicates, np.empty(0, np.uint64)
    known = entries["id"][partition_of(entries["id"], partitions) == partition]
    return duplicates, known[~np.isin(known, rows["id"])]


@ray.remote(num_cpus=LIGHT_CPUS)
def _sort_duplicates(*pieces: Any) -> Any:
    duplicates = np.concatenate(pieces)
    return duplicates[np.argsort(duplicates["address"])]
