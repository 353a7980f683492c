"""Arrow columns of token ids: list<int32>, encoded from texts and read as flat arrays without a Python loop over tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.data.tokenizer import Tokenizer, add_prefixes


def encode_column(
    tokenizer: Tokenizer, texts: Sequence[str], max_tokens: int, prefixes: npt.NDArray[np.int64] | None = None
) -> tuple[pa.ListArray, npt.NDArray[np.int64]]:
    """Encode N texts and truncate each to ``max_tokens`` tokens.

    Args:
        max_tokens: Maximum tokens, the prefix included.
        prefixes: Id to put before each text [N], -1 for none (``add_prefixes``).

    Returns:
        The ids, list<int32> [N], and the tokens of each text before truncation and without the prefix [N].
    """
    values, offsets = tokenizer.encode(texts)
    text_lengths = np.diff(offsets)
    if prefixes is not None:
        values, offsets = add_prefixes(values, offsets, prefixes)
    lengths = np.diff(offsets)
    is_kept = np.arange(len(values)) - np.repeat(offsets[:-1], lengths) < max_tokens
    kept_offsets = np.concatenate(([0], np.cumsum(np.minimum(lengths, max_tokens))))
    return list_column(values[is_kept], kept_offsets), text_lengths


def list_column(values: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64]) -> pa.ListArray:
    """Return N rows as a list<int32> column, from flat ids and offsets [N + 1]."""
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values, pa.int32()))


def flatten_column(column: pa.ChunkedArray | pa.ListArray) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Return a list<int32> column of N rows without nulls as flat ids and offsets [N + 1]; one chunk is not copied."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(array, pa.ChunkedArray):  # a column without chunks
        return np.zeros(0, np.int32), np.zeros(1, np.int64)
    offsets = array.offsets.to_numpy().astype(np.int64)
    return array.flatten().to_numpy(zero_copy_only=False), offsets - offsets[0]
