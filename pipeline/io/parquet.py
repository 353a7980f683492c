"""Write tables as Parquet to memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def to_parquet(table: pa.Table, footer: Mapping[str, str] | None = None, **options: Any) -> pa.Buffer:
    """Return a table as the bytes of a Parquet file, compressed with zstd.

    Args:
        footer: key-value metadata of the file. (Arrow's schema would repeat metadata of the table.)
        options: options of ``pyarrow.parquet.ParquetWriter`` or ``write_table``, such as ``row_group_size``.
    """
    sink = pa.BufferOutputStream()
    row_group_size = options.pop("row_group_size", None)
    with pq.ParquetWriter(sink, table.schema, compression="zstd", **options) as writer:
        writer.write_table(table, row_group_size)
        if footer:
            writer.add_key_value_metadata(dict(footer))
    return sink.getvalue()
