"""Input ids beside output ids: which documents are missing from an output, and which are in it too often.

    input files ── ids, hashed ──┬── part 0: sorted together, beside the ledger's ──┬── how many, and where the first ones are
    output files ── ids, hashed ─┴── part 1 …                                      ─┘

24 bytes a row pass through Ray's object store, and none through the driver, as in census.py, which makes the rows of the input.
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
from pipeline.data.row_address import ROW_BITS
from pipeline.runs.id_rows import ID_ROW
from pipeline.runs.ledger import Entries

DUPLICATE_BIT = np.uint64(1 << 63)
"""In the position of an output's row: it says of an input's row that another has its id before it. An id may have many."""
_EXAMPLES = 3
Rows = npt.NDArray[np.void]


@dataclass(frozen=True)
class RowSample:
    """Rows of a kind: how many, and the positions of the first few."""

    rows: int = 0
    at: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return self.rows > 0

    def __add__(self, other: RowSample) -> RowSample:
        return RowSample(self.rows + other.rows, tuple(sorted((*self.at, *other.at))[:_EXAMPLES]))


@dataclass(frozen=True)
class MatchCounts:
    """What became of rows of the input, and which rows of the output there should not be.

    inputs: with an id. found: in the output. skipped: not there, but in the ledger. unread: not there, of files that were not
    read to their ends. lost: neither. doubled: rows of the output whose id another one has. foreign: whose id the input has
    not, or not so often. Positions are those of the input for lost, else of the output.
    """

    inputs: int = 0
    found: int = 0
    skipped: int = 0
    unread: int = 0
    lost: RowSample = RowSample()
    doubled: RowSample = RowSample()
    foreign: RowSample = RowSample()

    def __add__(self, other: MatchCounts) -> MatchCounts:
        return MatchCounts(*(getattr(self, name) + getattr(other, name) for name in MatchCounts.__annotations__))


def match_ids(
    inputs: Sequence[Sequence[ray.ObjectRef[Rows]]],
    outputs: Sequence[Sequence[ray.ObjectRef[Rows]]],
    ledger: Sequence[ray.ObjectRef[Entries]],
    parts: int,
    unread: Sequence[int],
) -> MatchCounts:
    """Compare ids as multisets.

    Args:
        inputs, outputs: of each task, its rows (census.SEEN) by part. ledger: its parts, no more than ``parts``. unread:
            numbers of the input files that were not read to their ends.
    """
    tasks = []
    for part in range(parts):
        entries = ledger[part * len(ledger) // parts] if ledger else None
        pieces = [task[part] for task in (*inputs, *outputs)]
        tasks.append(_match_partition.remote(part, parts, entries, np.array(sorted(unread), np.uint64), len(inputs), *pieces))
    return sum(ray.get(tasks), MatchCounts())


@ray.remote(num_cpus=LIGHT_CPUS)
def _match_partition(part: int, parts: int, entries: Entries | None, unread: Any, inputs: int, *pieces: Any) -> MatchCounts:
    known = np.empty(0, np.uint64) if entries is None else entries["id"][partition_of(entries["id"], parts) == part]
    nothing = np.empty(0, ID_ROW)
    came, written = (np.concatenate([nothing, *some]) for some in (pieces[:inputs], pieces[inputs:]))
    return match_rows(came, written, known, unread)


def match_rows(inputs: Rows, outputs: Rows, known: npt.NDArray[np.uint64], unread: npt.NDArray[np.uint64]) -> MatchCounts:
    """Compare the rows of one part. known: keys of the ledger's ids in it."""
    rows = np.concatenate((inputs, outputs))
    if not len(rows):
        return MatchCounts()
    is_output = np.arange(len(rows)) >= len(inputs)
    order = np.lexsort((rows["at"], is_output, rows["more"], rows["id"]))
    rows, is_output = rows[order], is_output[order]
    is_repeat = is_output & (rows["at"] & DUPLICATE_BIT > 0)
    starts = np.ones(len(rows), np.bool_)
    starts[1:] = (rows["id"][1:] != rows["id"][:-1]) | (rows["more"][1:] != rows["more"][:-1])
    [first] = np.nonzero(starts)
    came = np.add.reduceat(~is_output, first, dtype=np.int64)
    repeats = np.add.reduceat(is_repeat, first, dtype=np.int64)
    own = np.diff(np.append(first, len(rows))) - came - repeats

    doubled = own > 1
    over = np.where(doubled, 0, np.maximum(own + repeats - came, 0))
    missing = np.maximum(came - own - repeats, 0)
    skipped = (missing == 1) & (own == 0) & np.isin(rows["id"][first], known)
    of_file = rows["at"][first] >> np.uint64(ROW_BITS)
    was_unread = (missing > 0) & ~skipped & np.isin(of_file, unread)
    lost = np.where(skipped | was_unread, 0, missing)

    last_input, last_output = first + came - 1, first + came + own + repeats - 1
    return MatchCounts(
        inputs=len(inputs),
        found=int(np.minimum(came, own + repeats).sum()),
        skipped=int(skipped.sum()),
        unread=int(missing[was_unread].sum()),
        lost=_sample_rows(lost, rows["at"][last_input]),
        doubled=_sample_rows(np.where(doubled, own - 1, 0), rows["at"][last_output]),
        foreign=_sample_rows(over, rows["at"][last_output]),
    )


def _sample_rows(rows: npt.NDArray[np.int64], at: npt.NDArray[np.uint64]) -> RowSample:
    positions = np.sort(at[rows > 0] & ~DUPLICATE_BIT)[:_EXAMPLES]
    return RowSample(int(rows.sum()), tuple(positions.tolist()))
