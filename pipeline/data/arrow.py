"""Convert Arrow types, columns and tables to the forms that the pipeline uses."""

from __future__ import annotations

from typing import Any

import pyarrow as pa


def plain_type(data_type: pa.DataType) -> pa.DataType:
    """Replace string and binary views by plain strings and binaries, also inside nested types.

    DataFusion and others write views; Arrow 26 cannot take rows out of them yet.
    """
    plain = _replace_views(data_type)
    return data_type if plain == data_type else plain  # keeps the field names and metadata of a type without views


def _replace_views(data_type: pa.DataType) -> pa.DataType:
    def plain_field(field: pa.Field) -> pa.Field:
        return field.with_type(plain_type(field.type))

    if pa.types.is_string_view(data_type):
        return pa.string()
    if pa.types.is_binary_view(data_type):
        return pa.binary()
    if pa.types.is_struct(data_type):
        return pa.struct([plain_field(field) for field in data_type])
    if pa.types.is_map(data_type):
        return pa.map_(plain_field(data_type.key_field), plain_field(data_type.item_field), data_type.keys_sorted)
    if pa.types.is_fixed_size_list(data_type):
        return pa.list_(plain_field(data_type.value_field), data_type.list_size)
    if pa.types.is_list(data_type):
        return pa.list_(plain_field(data_type.value_field))
    if pa.types.is_large_list(data_type):
        return pa.large_list(plain_field(data_type.value_field))
    return data_type


def is_text(data_type: pa.DataType) -> bool:
    return bool(pa.types.is_string(data_type) or pa.types.is_large_string(data_type))


def is_text_list(data_type: pa.DataType) -> bool:
    """Return whether a column of this type holds lists of texts."""
    is_list = pa.types.is_list(data_type) or pa.types.is_large_list(data_type)
    return bool(is_list and is_text(data_type.value_type))


def to_texts(column: pa.ChunkedArray) -> list[str | None]:
    """Return the values of a column; in strings, bytes that are not UTF-8 become U+FFFD."""
    try:
        column.validate(full=True)
        texts: list[str | None] = column.to_pylist()
        return texts
    except (pa.ArrowInvalid, UnicodeDecodeError):
        values = column.cast(pa.large_binary()).to_pylist()
        return [None if value is None else value.decode("utf-8", "replace") for value in values]


def to_values(column: Any) -> list[Any]:
    """Return the values of a column of any type; in strings, bytes that are not UTF-8 become U+FFFD."""
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
    """Pack a table of N rows into one row, with a list of N values in each column; field metadata is kept."""
    offsets = pa.array([0, len(table)], pa.int32())
    types = [pa.list_(field.with_name("item")) for field in table.schema]
    columns = [
        pa.ListArray.from_arrays(offsets, column.combine_chunks(), list_type)
        for column, list_type in zip(table.columns, types, strict=True)
    ]
    return pa.table(columns, pa.schema(zip(table.column_names, types, strict=True)))


def row_to_table(row: pa.Table) -> pa.Table:
    fields = [field.type.value_field.with_name(field.name) for field in row.schema]
    return pa.table([column.combine_chunks().flatten() for column in row.columns], pa.schema(fields))
