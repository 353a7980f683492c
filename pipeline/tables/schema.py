"""Column types of tables: the types that all tables share, and casts into the types of one table."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipeline.config.tables import FetchInput
from pipeline.data.arrow import is_text, plain_type
from pipeline.data.documents import MAX_LISTED_COLUMNS, check_columns
from pipeline.errors import UserError, describe_error

_TYPE_GROUPS = [
    pa.types.is_boolean,
    pa.types.is_floating,
    pa.types.is_decimal,
    pa.types.is_date,
    is_text,
    lambda dtype: pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype),
    lambda dtype: pa.types.is_list(dtype) or pa.types.is_large_list(dtype),
    pa.types.is_integer,
    lambda dtype: pa.types.is_timestamp(dtype) and dtype.tz is None,
    lambda dtype: pa.types.is_timestamp(dtype) and dtype.tz is not None,
]
"""Groups of types within which a cast keeps a value's meaning. Whether a value fits is checked when it is cast."""


def requested_columns(options: FetchInput) -> list[str]:
    """Return the names of the columns to fetch, the id first."""
    return list(dict.fromkeys([options.id_column, options.text_column, *options.keep_columns]))


def document_schema(table: pa.Schema, options: FetchInput) -> pa.Schema:
    """Return the schema of the columns to fetch. Raises UserError if one is missing or has an unusable type."""
    check_columns(table, options, options.table)
    return pa.schema([pa.field(name, _document_type(table.field(name).type)) for name in requested_columns(options)])


def _document_type(dtype: pa.DataType) -> pa.DataType:
    # PyIceberg reads every text as large_string, others do not. The type of table must not show in the documents.
    return pa.string() if is_text(plain_type(dtype)) else plain_type(dtype)


def common_type(field: pa.Field, option: str) -> pa.DataType:
    """Return the nearest type that every table has and that holds the field's values. Raises UserError if there is none."""
    dtype = field.type
    if pa.types.is_dictionary(dtype):
        return common_type(field.with_type(dtype.value_type), option)
    if pa.types.is_integer(dtype):
        return pa.int32() if dtype.bit_width < 32 or dtype == pa.int32() else pa.int64()
    if pa.types.is_floating(dtype):
        return pa.float64() if dtype == pa.float64() else pa.float32()
    if pa.types.is_timestamp(dtype):
        return pa.timestamp("us", dtype.tz and "UTC")
    if is_text(dtype):
        return pa.string()
    if pa.types.is_binary(dtype) or pa.types.is_large_binary(dtype) or pa.types.is_fixed_size_binary(dtype):
        return pa.binary()
    if pa.types.is_date(dtype):
        return pa.date32()
    if pa.types.is_boolean(dtype) or pa.types.is_decimal128(dtype):
        return dtype
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype):
        return pa.list_(common_type(field.with_type(dtype.value_type), option))
    raise UserError(f"column {field.name!r} is {dtype}, a type that not every table has; set {option} to the other columns")


def align_schema(schema: pa.Schema, table: pa.Schema, name: str) -> pa.Schema:
    """Return the schema in the column types of an existing table. Raises UserError if a column does not fit.

    Args:
        name: the table's name, for messages.
    """
    fields = []
    for field in schema:
        if field.name not in table.names:
            columns = ", ".join(table.names[:MAX_LISTED_COLUMNS])
            raise UserError(
                f"column {field.name!r} is not in {name} (it has: {columns}); add it there, or set --input.columns to those "
                "that it has"
            )
        target = table.field(field.name)
        if field.type != target.type and not any(group(field.type) and group(target.type) for group in _TYPE_GROUPS):
            raise UserError(
                f"column {field.name!r} is {target.type} in {name} but {field.type} in the summaries; set another "
                "--output.table, or set --input.columns to the other columns"
            )
        fields.append(target.remove_metadata())
    return pa.schema(fields)


def cast_to_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the schema's columns of a table, cast to their types. Raises UserError for a value that does not fit."""
    columns = []
    for field in schema:
        try:
            columns.append(table[field.name].cast(field.type))
        except pa.ArrowException as error:
            raise UserError(f"column {field.name!r} has a value that is not {field.type}: {describe_error(error)}") from None
    return pa.table(columns, schema)


def to_column(values: Sequence[object], field: pa.Field) -> pa.Array:
    """Return Python values as a column. Raises UserError for a value that does not fit its type."""
    try:
        return pa.array(values, field.type)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"column {field.name!r} has a value that is not {field.type}: {describe_error(error)}") from None
