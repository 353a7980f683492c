"""Sound Parquet files of any schema and values: columns of all types, nulls, bytes that are no text, nested and encoded."""

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
    """Numbers alone: a file is drawn by what is made of them."""
    return [number.to_bytes(4, "little") for number in range(64)]


def target(data: bytes) -> None:
    """Write a file that is drawn by the data, and read it."""
    draw = random.Random(data)
    rows = draw.choice((0, 1, 3, 9))
    names = draw.choice((["id", "text"], ["id", "text", "id"], ["text"], ["id", "text", "a.b"]))
    kinds = [_TYPES[0] if draw.random() < 0.5 else draw.choice(_TYPES) for _ in names]
    table = pa.Table.from_arrays([_column(kind, rows, draw) for kind in kinds], names=names)
    path = Path(SCRATCH, "tables.parquet")
    compression = draw.choice(("none", "snappy", "zstd"))
    pq.write_table(table, path, row_group_size=draw.choice((1, 4, 99)), compression=compression)
    read(path)


def _column(kind: pa.DataType, rows: int, draw: random.Random) -> pa.Array:
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        wide = pa.types.is_large_string(kind)
        values = [
            None if draw.random() < 0.2 else draw.choice(_TEXTS).encode() + draw.randbytes(draw.choice((0, 0, 5)))
            for _ in range(rows)
        ]
        return pa.array(values, pa.large_binary() if wide else pa.binary()).view(kind)  # bytes that are no UTF-8, unchecked
    if pa.types.is_integer(kind):
        return pa.array([draw.choice((None, 0, 1, 100)) for _ in range(rows)], kind)
    if pa.types.is_dictionary(kind):
        return pa.array([draw.choice(_TEXTS) for _ in range(rows)]).dictionary_encode().cast(kind)
    return pa.nulls(rows, kind)
