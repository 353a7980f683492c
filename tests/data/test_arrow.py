"""Tables survive being packed into a row."""

from __future__ import annotations

import pyarrow as pa

from pipeline.data.arrow import row_to_table, table_to_row


def test_table_survives_being_packed_into_a_row() -> None:
    fields = [
        pa.field("a", pa.int64(), metadata={"unit": "m"}),
        pa.field("b", pa.list_(pa.string())),
        pa.field("c", pa.null()),
        pa.field("d", pa.int8(), nullable=False),
        pa.field("e", pa.dictionary(pa.int32(), pa.string())),
    ]
    columns = [pa.chunked_array([[1, 2], [None]]), [["x"], None, []], pa.nulls(3), [1, 2, 3], ["y", "z", "y"]]
    table = pa.table(
        [
            pa.array(column, field.type) if isinstance(column, list) else column
            for column, field in zip(columns, fields, strict=True)
        ],
        schema=pa.schema(fields),
    )
    for part in (table, table.slice(1), table.slice(3)):
        row = table_to_row(part)
        assert len(row) == 1
        assert row_to_table(row).equals(part.combine_chunks(), check_metadata=True)
        two_rows = pa.concat_tables([table_to_row(table), row])
        assert row_to_table(two_rows.slice(1)).equals(part.combine_chunks())
