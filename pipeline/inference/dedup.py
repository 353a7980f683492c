"""A census before a run: which rows repeat an id, and which documents of earlier runs are gone.

    units ── the ids of some, hashed ──┬── part 0: sorted, beside the ledger's ──┬── repeated rows, missing ids
                                       ├── part 1 …                              │
                                       └── …                                     ┘

24 bytes a document pass through Ray's object store, and none through the driver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
from pyarrow import fs

from pipeline.cluster import LIGHT_CPUS
from pipeline.data.hashing import Keys
from pipeline.data.partition import partition_count, partition_of
from pipeline.data.splits import Split
from pipeline.runs.id_rows import ID_ROW, read_ids
from pipeline.runs.ledger import Entries, Ledger
from pipeline.runs.unreadable_files import UnreadableFiles

_DUPLICATE = np.dtype([("at", "<u8"), ("first", "<u8")])


Duplicates = npt.NDArray[np.void]


@dataclass(frozen=True)
class DuplicateRows:
    """Rows whose id another row has before them: their positions (windows.py), sorted, and its; in Ray's object store."""

    ref: ray.ObjectRef[Duplicates]

    def fetch(self) -> Duplicates:
        """To look into, in a task."""
        return ray.get(self.ref)


@dataclass(frozen=True)
class IdCheck:
    """Of a store. missing: keys of ids that the ledger has and the store has not."""

    repeated: DuplicateRows
    missing: Sequence[ray.ObjectRef[Keys]]


def check_ids(
    units: Sequence[Split],
    filesystem: fs.FileSystem,
    id_column: str,
    ledger: Ledger,
    unreadable: UnreadableFiles,
) -> IdCheck:
    """Read the ids of a store, which make these units.

    Args:
        unreadable: files that cannot be read are added to it.
    """
    rows = sum(unit.rows for unit in units)
    parts = max(len(ledger.parts), partition_count(rows))
    by_task = read_ids(units, filesystem, id_column, parts, unreadable)
    sifted = []
    for part in range(parts):
        # The ledger has no more parts than the store, each for several of the store's if it has fewer.
        entries = ledger.parts[part * len(ledger.parts) // parts] if ledger.parts else None
        sifted.append(
            _check_partition.options(num_returns=2).remote(part, parts, entries, *(pieces[part] for pieces in by_task))
        )
    return IdCheck(
        DuplicateRows(_sort_duplicates.remote(*(repeats for repeats, _ in sifted))), [missing for _, missing in sifted]
    )


@ray.remote(num_cpus=LIGHT_CPUS)
def _check_partition(part: int, parts: int, entries: Entries | None, *pieces: Any) -> tuple[Any, Any]:
    """Repeats, and keys of the ledger's ids that are not there."""
    seen = np.concatenate(pieces) if pieces else np.empty(0, ID_ROW)
    seen = seen[np.lexsort((seen["address"], seen["id_rest"], seen["id"]))]
    again = np.zeros(len(seen), np.bool_)
    again[1:] = (seen["id"][1:] == seen["id"][:-1]) & (seen["id_rest"][1:] == seen["id_rest"][:-1])
    first = np.maximum.accumulate(np.where(again, 0, np.arange(len(seen))))
    repeats = np.empty(int(again.sum()), _DUPLICATE)
    repeats["at"], repeats["first"] = seen["address"][again], seen["address"][first[again]]
    if entries is None:
        return repeats, np.empty(0, np.uint64)
    known = entries["id"][partition_of(entries["id"], parts) == part]
    return repeats, known[~np.isin(known, seen["id"])]


@ray.remote(num_cpus=LIGHT_CPUS)
def _sort_duplicates(*pieces: Any) -> Any:
    repeats = np.concatenate(pieces)
    return repeats[np.argsort(repeats["at"])]
