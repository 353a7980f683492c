"""Hash partitions: rows divided by the first bits of their id key, so that each partition fits one task.

The number of partitions is a power of two, so each of few partitions is the union of consecutive ones of many.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pipeline.data.hashing import Keys

KeyedRows = npt.NDArray[np.void]
_ROWS_PER_PARTITION = 4 * 2**20


def partition_count(rows: int) -> int:
    """Return the number of partitions for this many rows, a power of two."""
    return 1 << max(0, rows // _ROWS_PER_PARTITION).bit_length()


def partition_of(ids: Keys, partitions: int) -> npt.NDArray[np.int64]:
    """Return the partition of each of N id keys [N]."""
    bits = partitions.bit_length() - 1
    return (ids >> np.uint64(64 - bits)).astype(np.int64) if bits > 0 else np.zeros(len(ids), np.int64)


def partition_rows(rows: KeyedRows, partitions: int) -> list[KeyedRows]:
    """Divide rows that have a field ``id`` into partitions, keeping their order."""
    numbers = partition_of(rows["id"], partitions)
    return [rows[numbers == number] for number in range(partitions)]
