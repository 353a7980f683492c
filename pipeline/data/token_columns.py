"""Arrow columns of token ids: list<int32>, made from texts and read as flat arrays, without a Python loop over tokens.

And tables as rows: what belongs together is then never cut, nor joined with something else, where rows travel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.data.tokenizer import Tokenizer


def encode_column(tokenizer: Tokenizer, texts: Sequence[str], longest: int) -> tuple[pa.ListArray, npt.NDArray[np.int64]]:
    """Encode N texts and cut each to ``longest`` subwords.

    Returns:
        ids[N], list<int32>; subwords of each whole text [N].
    """
    values, offsets = tokenizer.encode(texts)
    lengths = np.diff(offsets)
    within = np.arange(len(values)) - np.repeat(offsets[:-1], lengths) < longest
    kept = np.concatenate(([0], np.cumsum(np.minimum(lengths, longest))))
    return list_column(values[within], kept), lengths


def list_column(values: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64]) -> pa.ListArray:
    """N rows of ids, flat, as a list<int32> column."""
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values, pa.int32()))


def flatten_column(column: pa.ChunkedArray | pa.ListArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """A list<int32> column without nulls as values and offsets[N + 1]; no copy where it is one chunk."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # no chunk at all
        return np.zeros(0, np.int32), np.zeros(1, np.int64)
    offsets = array.offsets.to_numpy().astype(np.int64)
    return array.flatten().to_numpy(zero_copy_only=False), offsets - offsets[0]
