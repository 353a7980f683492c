"""Compare the ids of an input and its output: which documents are missing, duplicated or unexpected.

    input files ── hashed ids ──┬── partition 0: sorted with the output's and the ledger's ids ──┬── counts, and the first rows
    output files ── hashed ids ─┴── partition 1 …                                               ─┘

24 bytes a row pass through Ray's object store, and none through the driver.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import ray

from pipeline.cluster import LIGHT_CPUS
from pipeline.data.partition import partition_of
from pipeline.data.row_address import file_numbers
from pipeline.runs.id_rows import ID_ROW
from pipeline.runs.ledger import Entries

DUPLICATE_BIT = np.uint64(1 << 63)
"""Flag in the address of a reject for a duplicate id. An id may have any number of these, and one other output row."""

_EXAMPLES = 3
IdRows = npt.NDArray[np.void]


@dataclass(frozen=True)
class RowSample:
    """Count of rows, and the addresses of the first few."""

    rows: int = 0
    addresses: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return self.rows > 0

    def __add__(self, other: RowSample) -> RowSample:
        return RowSample(self.rows + other.rows, tuple(sorted((*self.addresses, *other.addresses))[:_EXAMPLES]))


@dataclass(frozen=True)
class MatchCounts:
    """Counts of input rows by what became of them, and of output rows that should not exist.

    Attributes:
        inputs: Input rows with an id.
        written: Input rows in the output.
        skipped: Input rows not in the output, but in the ledger.
        unread: Input rows in neither, of files that the run could not read to the end.
        missing: Input rows in neither, of other files.
        duplicates: Output rows whose id another output row has.
        unexpected: Output rows whose id the input does not have, or has fewer times.
    """

    inputs: int = 0
    written: int = 0
    skipped: int = 0
    unread: int = 0
    missing: RowSample = RowSample()
    duplicates: RowSample = RowSample()
    unexpected: RowSample = RowSample()

    def __add__(self, other: MatchCounts) -> MatchCounts:
        return MatchCounts(*(getattr(self, name) + getattr(other, name) for name in MatchCounts.__annotations__))


def match_ids(
    inputs: Sequence[Sequence[ray.ObjectRef[IdRows]]],
    outputs: Sequence[Sequence[ray.ObjectRef[IdRows]]],
    ledger: Sequence[ray.ObjectRef[Entries]],
    partitions: int,
    unread_files: Sequence[int],
) -> MatchCounts:
    """Compare ids as multisets, each partition in its own task.

    Args:
        inputs, outputs: Rows (ID_ROW) of each reading task, by partition.
        ledger: Entries by partition; at most ``partitions`` of them.
        partitions: Their number, a power of two.
        unread_files: Numbers of the input files that the run could not read to the end.
    """
    tasks = []
    unread = np.array(sorted(unread_files), np.uint64)
    for number in range(partitions):
        entries = ledger[number * len(ledger) // partitions] if ledger else None
        pieces = [task[number] for task in (*inputs, *outputs)]
        tasks.append(_match_partition.remote((number, partitions), entries, unread, len(inputs), *pieces))
    return sum(ray.get(tasks), MatchCounts())


@ray.remote(num_cpus=LIGHT_CPUS)
def _match_partition(
    partition: tuple[int, int], entries: Entries | None, unread: Any, input_pieces: int, *pieces: IdRows
) -> MatchCounts:
    """Match one partition (its number, and how many there are); the first ``input_pieces`` pieces are the input's."""
    number, partitions = partition
    done = np.empty(0, np.uint64)
    if entries is not None:
        done = entries["id"][partition_of(entries["id"], partitions) == number]
    empty = np.empty(0, ID_ROW)
    inputs, outputs = np.concatenate([empty, *pieces[:input_pieces]]), np.concatenate([empty, *pieces[input_pieces:]])
    return match_rows(inputs, outputs, done, unread)


def match_rows(inputs: IdRows, outputs: IdRows, done: npt.NDArray[np.uint64], unread: npt.NDArray[np.uint64]) -> MatchCounts:
    """Compare the rows (ID_ROW) of one partition.

    Args:
        inputs, outputs: Rows with an id.
        done: Keys of the ledger's ids.
        unread: Numbers of the input files that the run could not read to the end.
    """
    rows = np.concatenate((inputs, outputs))
    if not len(rows):
        return MatchCounts()
    is_output = np.arange(len(rows)) >= len(inputs)
    order = np.lexsort((rows["address"], is_output, rows["id_rest"], rows["id"]))
    rows, is_output = rows[order], is_output[order]
    is_duplicate_reject = is_output & (rows["address"] & DUPLICATE_BIT > 0)
    starts = np.ones(len(rows), np.bool_)
    starts[1:] = (rows["id"][1:] != rows["id"][:-1]) | (rows["id_rest"][1:] != rows["id_rest"][:-1])
    # All that follows is by id: its first row, and counts of its rows.
    [first] = np.nonzero(starts)
    in_input = np.add.reduceat(~is_output, first, dtype=np.int64)
    in_output = np.diff(np.append(first, len(rows))) - in_input
    processed = in_output - np.add.reduceat(is_duplicate_reject, first, dtype=np.int64)

    has_duplicates = processed > 1
    surplus = np.where(has_duplicates, 0, np.maximum(in_output - in_input, 0))
    absent = np.maximum(in_input - in_output, 0)
    is_skipped = (absent == 1) & (processed == 0) & np.isin(rows["id"][first], done)
    is_unread = (absent > 0) & ~is_skipped & np.isin(file_numbers(rows["address"][first]), unread)

    last_input, last_output = first + in_input - 1, first + in_input + in_output - 1
    return MatchCounts(
        inputs=len(inputs),
        written=int(np.minimum(in_input, in_output).sum()),
        skipped=int(is_skipped.sum()),
        unread=int(absent[is_unread].sum()),
        missing=_sample_rows(np.where(is_skipped | is_unread, 0, absent), rows["address"][last_input]),
        duplicates=_sample_rows(np.where(has_duplicates, processed - 1, 0), rows["address"][last_output]),
        unexpected=_sample_rows(surplus, rows["address"][last_output]),
    )


def _sample_rows(counts: npt.NDArray[np.int64], addresses: npt.NDArray[np.uint64]) -> RowSample:
    """Sum the counts by id, with the addresses of the first ids that have any."""
    first = np.sort(addresses[counts > 0] & ~DUPLICATE_BIT)[:_EXAMPLES]
    return RowSample(int(counts.sum()), tuple(first.tolist()))
