"""Matching of input and output ids, against a count of each id."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.row_address import row_addresses, unpack_address
from pipeline.runs.id_rows import ID_ROW
from pipeline.verify.match import DUPLICATE_BIT, MatchCounts, RowSample, match_rows

# A few ids, some of which share the first half of their key.
IDS = st.tuples(st.integers(0, 3), st.integers(0, 2))


def id_rows(ids: list[tuple[int, int]], file: int, is_duplicate: list[bool] | None = None) -> np.ndarray:
    """Return the rows of one file, in order."""
    rows = np.empty(len(ids), ID_ROW)
    for index, (first, second) in enumerate(ids):
        rows["id"][index], rows["id_rest"][index] = first, second
    rows["address"] = row_addresses(file, 0, len(ids)) | np.array(is_duplicate or [False] * len(ids), bool) * DUPLICATE_BIT
    return rows


@given(
    st.lists(IDS, max_size=12), st.lists(IDS, max_size=4), st.lists(st.tuples(IDS, st.booleans()), max_size=12), st.sets(IDS)
)
def test_counts_of_each_id(read: list, unread: list, output: list, done: set) -> None:
    """Input file 0 was read; file 1 was not read to the end."""
    inputs = np.concatenate((id_rows(read, 0), id_rows(unread, 1)))
    outputs = id_rows([id_ for id_, _ in output], 0, [is_duplicate for _, is_duplicate in output])
    keys = np.array([first for first, _ in done], np.uint64)
    matched = match_rows(inputs, outputs, keys, np.array([1], np.uint64))

    in_input, processed = Counter(read) + Counter(unread), Counter(id_ for id_, is_duplicate in output if not is_duplicate)
    rejected = Counter(id_ for id_, is_duplicate in output if is_duplicate)
    expected: Counter[str] = Counter()
    for id_ in in_input.keys() | processed.keys() | rejected.keys():
        in_output = processed[id_] + rejected[id_]
        expected["written"] += min(in_input[id_], in_output)
        expected["duplicates"] += max(0, processed[id_] - 1)
        expected["unexpected"] += max(0, in_output - in_input[id_]) if processed[id_] < 2 else 0
        absent = max(0, in_input[id_] - in_output)
        if absent == 1 and not processed[id_] and id_[0] in keys.tolist():
            expected["skipped"] += 1
        elif id_ in read:
            expected["missing"] += absent
        else:
            expected["unread"] += absent
    for name in ("written", "skipped", "unread"):
        assert getattr(matched, name) == expected[name]
    for name, file_ids, candidates in (
        ("missing", read, read + unread),
        ("duplicates", [id_ for id_, _ in output], processed),
        ("unexpected", [id_ for id_, _ in output], processed | rejected),
    ):
        sample = getattr(matched, name)
        assert sample.rows == expected[name]
        assert bool(sample.addresses) == bool(sample)
        for file, row in map(unpack_address, sample.addresses):
            assert file == 1 or file_ids[row] in candidates


def test_sum_of_partitions() -> None:
    one = MatchCounts(3, 1, missing=RowSample(2, (5, 9)), unexpected=RowSample(1, (4,)))
    other = MatchCounts(4, 2, skipped=1, missing=RowSample(7, (1, 6, 8)))
    assert one + other == MatchCounts(7, 3, 1, 0, RowSample(9, (1, 5, 6)), RowSample(), RowSample(1, (4,)))
