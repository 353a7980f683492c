"""Valid Parquet files with unusual schemas and values: all types of columns, nulls, invalid UTF-8."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from scratch import SCRATCH

from targets.documents import read

_TYPES = [
    pa.string(), pa.large_string(), pa.int64(), pa.int8(), pa.uint64(), pa.binary(), pa.float64(), pa.bool_(), pa.date32(),
    pa.timestamp("us"), pa.list_(pa.string()), pa.struct([("a", pa.string())]), pa.dictionary(pa.int32(), pa.string()),
    pa.decimal128(20, 3), pa.null(), pa.string_view(),
]  # fmt: skip
_TEXTS = ["", " ", "a", "\x00", "e\u0301" * 300, "\u202ertl", "\ufdfa" * 50, "\u200b", "👩‍👩‍👧", "x" * 3000, "</s>", "▁"]


def seeds() -> list[bytes]:
    """Return numbers. The mutated number seeds the random choice of a file."""
    return [number.to_bytes(4, "little") for number in range(64)]


def target(data: bytes) -> None:
    """Write a random file and read it."""
    rng = random.Random(data)
    rows = rng.choice((0, 1, 3, 9))
    names = rng.choice((["id", "text"], ["id", "text", "id"], ["text"], ["id", "text", "a.b"]))
    types = [_TYPES[0] if rng.random() < 0.5 else rng.choice(_TYPES) for _ in names]
    table = pa.Table.from_arrays([_column(dtype, rows, rng) for dtype in types], names=names)
    path = Path(SCRATCH, "tables.parquet")
    compression = rng.choice(("none", "snappy", "zstd"))
    pq.write_table(table, path, row_group_size=rng.choice((1, 4, 99)), compression=compression)
    read(path)


def _column(dtype: pa.DataType, rows: int, rng: random.Random) -> pa.Array:
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype):
        is_large = pa.types.is_large_string(dtype)
        values = [
            None if rng.random() < 0.2 else rng.choice(_TEXTS).encode() + rng.randbytes(rng.choice((0, 0, 5)))
            for _ in range(rows)
        ]
        return pa.array(values, pa.large_binary() if is_large else pa.binary()).view(dtype)  # may be invalid UTF-8
    if pa.types.is_integer(dtype):
        return pa.array([rng.choice((None, 0, 1, 100)) for _ in range(rows)], dtype)
    if pa.types.is_dictionary(dtype):
        return pa.array([rng.choice(_TEXTS) for _ in range(rows)]).dictionary_encode().cast(dtype)
    return pa.nulls(rows, dtype)
