"""Which ids of an output are missing or too many, held to a count of each."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.row_address import ROW_BITS
from pipeline.runs.id_rows import ID_ROW
from pipeline.verify.match import DUPLICATE_BIT, MatchCounts, RowSample, match_rows

# Few ids, some of which share their first half.
IDS = st.tuples(st.integers(0, 3), st.integers(0, 2))


def rows(ids: list[tuple[int, int]], file: int, flags: list[bool] | None = None) -> np.ndarray:
    """Rows of one file in their order."""
    made = np.empty(len(ids), ID_ROW)
    for at, (first, more) in enumerate(ids):
        made[at] = (first, more, file << ROW_BITS | at)
    made["at"] |= np.array(flags or [False] * len(ids), bool) * DUPLICATE_BIT
    return made


@given(
    st.lists(IDS, max_size=12), st.lists(IDS, max_size=4), st.lists(st.tuples(IDS, st.booleans()), max_size=12), st.sets(IDS)
)
def test_each_id_is_counted(sound: list, unread: list, written: list, known: set) -> None:
    """Input file 0 was read, file 1 was not read to its end."""
    inputs = np.concatenate((rows(sound, 0), rows(unread, 1)))
    outputs = rows([identity for identity, _ in written], 0, [repeat for _, repeat in written])
    keys = np.array([first for first, _ in known], np.uint64)
    found = match_rows(inputs, outputs, keys, np.array([1], np.uint64))

    came, own = Counter(sound) + Counter(unread), Counter(identity for identity, repeat in written if not repeat)
    repeats = Counter(identity for identity, repeat in written if repeat)
    expected: Counter[str] = Counter()
    for identity in came.keys() | own.keys() | repeats.keys():
        out = own[identity] + repeats[identity]
        expected["found"] += min(came[identity], out)
        expected["doubled"] += max(0, own[identity] - 1)
        expected["foreign"] += max(0, out - came[identity]) if own[identity] < 2 else 0
        missing = max(0, came[identity] - out)
        if missing == 1 and not own[identity] and identity[0] in keys.tolist():
            expected["skipped"] += 1
        elif identity in sound:
            expected["lost"] += missing
        else:
            expected["unread"] += missing
    assert (found.found, found.skipped, found.unread) == tuple(expected[name] for name in ("found", "skipped", "unread"))
    assert tuple(misses.rows for misses in (found.lost, found.doubled, found.foreign)) == tuple(
        expected[name] for name in ("lost", "doubled", "foreign")
    )
    for misses, ids in ((found.lost, sound + unread), (found.doubled, own), (found.foreign, own | repeats)):
        assert bool(misses.at) == (misses.rows > 0)
        names = [identity for identity, _ in written] if misses is not found.lost else sound
        for at in misses.at:
            if at >> ROW_BITS == 0:
                assert names[at % 2**ROW_BITS] in ids


def test_parts_add_up() -> None:
    one = MatchCounts(3, 1, lost=RowSample(2, (5, 9)), foreign=RowSample(1, (4,)))
    other = MatchCounts(4, 2, skipped=1, lost=RowSample(7, (1, 6, 8)))
    assert one + other == MatchCounts(7, 3, 1, 0, RowSample(9, (1, 5, 6)), RowSample(), RowSample(1, (4,)))
