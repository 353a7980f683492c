"""Columns of stores: what becomes of types that not every store knows."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from pipeline.config.tables import FetchInput
from pipeline.data.arrow import is_text, plain_type
from pipeline.data.documents import LISTED_COLUMNS, check_columns
from pipeline.errors import UserError, describe_error

_SAME = [
    pa.types.is_boolean,
    pa.types.is_floating,
    pa.types.is_decimal,
    pa.types.is_date,
    is_text,
    lambda kind: pa.types.is_binary(kind) or pa.types.is_large_binary(kind),
    lambda kind: pa.types.is_list(kind) or pa.types.is_large_list(kind),
    pa.types.is_integer,
    lambda kind: pa.types.is_timestamp(kind) and kind.tz is None,
    lambda kind: pa.types.is_timestamp(kind) and kind.tz is not None,
]
"""Within each of these a value keeps its meaning; whether it fits is seen as it comes."""


def chosen(options: FetchInput) -> list[str]:
    """The columns that a fetch takes, the id first."""
    return list(dict.fromkeys([options.id_column, options.text_column, *options.keep_columns]))


def document_schema(found: pa.Schema, options: FetchInput) -> pa.Schema:
    """Of the columns of documents, from all of a table. Raises UserError where one is not there or of no use."""
    check_columns(found, options, options.table)
    return pa.schema([pa.field(name, _of_documents(found.field(name).type)) for name in chosen(options)])


def _of_documents(kind: pa.DataType) -> pa.DataType:
    # PyIceberg says large_string of all texts, others do not: a store must not look changed for that.
    return pa.string() if is_text(plain_type(kind)) else plain_type(kind)


def common_type(field: pa.Field, option: str) -> pa.DataType:
    """The type that a column has in every store: the nearest one that holds its values. Raises UserError if there is none."""
    kind = field.type
    if pa.types.is_dictionary(kind):
        return common_type(field.with_type(kind.value_type), option)
    if pa.types.is_integer(kind):
        return pa.int32() if kind.bit_width < 32 or kind == pa.int32() else pa.int64()
    if pa.types.is_floating(kind):
        return pa.float64() if kind == pa.float64() else pa.float32()
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", kind.tz and "UTC")
    for of_kind, into in ((is_text, pa.string()), (_is_binary, pa.binary()), (pa.types.is_date, pa.date32())):
        if of_kind(kind):
            return into
    if pa.types.is_boolean(kind) or pa.types.is_decimal128(kind):
        return kind
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(common_type(field.with_type(kind.value_type), option))
    raise UserError(f"column {field.name!r} is {kind}, which not every store has; set {option} to those without it")


def align_schema(schema: pa.Schema, table: pa.Schema, name: str) -> pa.Schema:
    """A schema of rows in the types of a table that is there. Raises UserError where a column has no place in it."""
    fields = []
    for field in schema:
        if field.name not in table.names:
            shown = ", ".join(table.names[:LISTED_COLUMNS])
            raise UserError(
                f"column {field.name!r} is not in {name} (it has: {shown}); add it there, or set --input.columns to those that "
                "it has"
            )
        there = table.field(field.name)
        if field.type != there.type and not any(same(field.type) and same(there.type) for same in _SAME):
            raise UserError(
                f"column {field.name!r} is {there.type} in {name} but {field.type} in the summaries; set another "
                "--output.table, or set --input.columns to those without it"
            )
        fields.append(there.remove_metadata())
    return pa.schema(fields)


class SchemaCaster:
    """Brings tables into a schema, by the names of columns. Raises UserError where a value has no place in it."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema

    def __call__(self, table: pa.Table) -> pa.Table:
        """The table's columns in the schema's order and types."""
        columns = []
        for field in self._schema:
            try:
                columns.append(table[field.name].cast(field.type))
            except pa.ArrowException as error:
                raise UserError(
                    f"column {field.name!r} has values that are not {field.type}: {describe_error(error)}"
                ) from None
        return pa.table(columns, self._schema)


def rows_to_table(values: Sequence[object], field: pa.Field) -> pa.Array:
    """A column of Python values. Raises UserError for one that is not of the type."""
    try:
        return pa.array(values, field.type)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"column {field.name!r} has a value that is not {field.type}: {describe_error(error)}") from None


def _is_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))
