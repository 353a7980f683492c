"""Windows are cut at a number of tokens."""

from __future__ import annotations

from itertools import pairwise

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.inference.stages.read import cut_by_tokens
from pipeline.inference.stages.window import IDS


@given(st.lists(st.integers(0, 30), max_size=40), st.integers(1, 60))
def test_windows_are_as_long_as_the_token_limit_allows(lengths: list[int], max_tokens: int) -> None:
    ids = pa.array([[7] * length for length in lengths], pa.list_(pa.int32()))
    parts = list(cut_by_tokens(pa.table({"row": range(len(lengths)), IDS: ids}), max_tokens))
    assert [row for part in parts for row in part["row"].to_pylist()] == list(range(len(lengths)))
    tokens = [[len(row) for row in part[IDS].to_pylist()] for part in parts]
    assert all(part and (sum(part) <= max_tokens or len(part) == 1) for part in tokens)
    assert all(sum(part) + following[0] > max_tokens for part, following in pairwise(tokens))
