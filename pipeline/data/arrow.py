"""Arrow types, columns and tables as the rest of the code needs them."""

from __future__ import annotations

from typing import Any

import pyarrow as pa


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type with strings and bytes in the place of Arrow's views of them, which DataFusion and others write: Arrow itself
    cannot take rows out of those yet (as of 26)."""
    plain = _plain_type(kind)
    return kind if plain == kind else plain  # what has none keeps the names and notes of its parts


def _plain_type(kind: pa.DataType) -> pa.DataType:
    def inside(field: pa.Field) -> pa.Field:
        return field.with_type(plain_type(field.type))

    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_struct(kind):
        return pa.struct([inside(field) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(inside(kind.key_field), inside(kind.item_field), kind.keys_sorted)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(inside(kind.value_field), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(inside(kind.value_field))
    if pa.types.is_large_list(kind):
        return pa.large_list(inside(kind.value_field))
    return kind


def is_text(kind: pa.DataType) -> bool:
    """Whether a column of this type has texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def to_texts(column: pa.ChunkedArray) -> list[str | None]:
    """A column's values, strings as Python strings: bytes that are not UTF-8, lone surrogates among them, become U+FFFD."""
    try:
        column.validate(full=True)
        texts: list[str | None] = column.to_pylist()
        return texts
    except (pa.ArrowInvalid, UnicodeDecodeError):
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if text is None else text.decode("utf-8", "replace") for text in raw]


def to_values(column: Any) -> list[Any]:
    """An Arrow column as Python values; bytes of a string that are no UTF-8 become U+FFFD."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_to_value(scalar) for scalar in column]


def _to_value(scalar: Any) -> Any:
    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.ListScalar | pa.LargeListScalar):
        return [_to_value(inner) for inner in scalar.values or ()]
    if isinstance(scalar, pa.StructScalar):
        return {name: _to_value(scalar[name]) for name in scalar}
    if isinstance(scalar, pa.StringScalar | pa.LargeStringScalar):
        return scalar.as_buffer().to_pybytes().decode(errors="replace")
    return scalar.as_py()


def table_to_row(table: pa.Table) -> pa.Table:
    """A table of N rows as one whose only row has a list of N values in each column; fields keep what is said of them."""
    ends = pa.array([0, len(table)], pa.int32())
    kinds = [pa.list_(field.with_name("item")) for field in table.schema]
    columns = zip(table.columns, kinds, strict=True)
    lists = [pa.ListArray.from_arrays(ends, column.combine_chunks(), kind) for column, kind in columns]
    return pa.table(lists, pa.schema(zip(table.column_names, kinds, strict=True)))


def row_to_table(row: pa.Table) -> pa.Table:
    """The table that ``table_to_row`` made a row of."""
    fields = [field.type.value_field.with_name(field.name) for field in row.schema]
    return pa.table([column.combine_chunks().flatten() for column in row.columns], pa.schema(fields))
