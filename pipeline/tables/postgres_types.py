"""Column types of PostgreSQL in Arrow, and Arrow's in SQL."""

from __future__ import annotations

import pyarrow as pa

from pipeline.config.tables import FetchInput
from pipeline.errors import UserError

TEXT_TYPES = {"text", "varchar", "bpchar", "name", "uuid", "json", "jsonb"}
"""Types that are read as text. Enumerations are not among them: each has a name of its own. A view can cast them."""

ARROW_TYPES = {
    "int2": pa.int32(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "float4": pa.float32(),
    "float8": pa.float64(),
    "bool": pa.bool_(),
    "bytea": pa.binary(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", "UTC"),
    **dict.fromkeys(TEXT_TYPES, pa.string()),
}

_SQL_TYPES = {
    pa.string(): "text",
    pa.int32(): "integer",
    pa.int64(): "bigint",
    pa.float32(): "real",
    pa.float64(): "double precision",
    pa.bool_(): "boolean",
    pa.binary(): "bytea",
    pa.date32(): "date",
    pa.timestamp("us"): "timestamp",
    pa.timestamp("us", "UTC"): "timestamptz",
}

_MAX_DECIMAL_DIGITS = 38
"""Digits of a decimal that every reader of Parquet supports."""


def arrow_type(column: str, type_name: str, options: FetchInput) -> pa.DataType:
    """Return the Arrow type of a column. Raises UserError if there is none."""
    if type_name.startswith("numeric("):
        digits, scale = (int(number) for number in type_name.removeprefix("numeric(").rstrip(")").split(","))
        if digits <= _MAX_DECIMAL_DIGITS and 0 <= scale <= digits:
            return pa.decimal128(digits, scale)
    if type_name not in ARROW_TYPES:
        raise UserError(
            f"column {column!r} of {options.table} is {type_name}, a type that Parquet does not have; cast it in a view, or "
            "remove it from --input.keep_columns"
        )
    return ARROW_TYPES[type_name]


def sql_type(field: pa.Field) -> str:
    """Return the SQL type of a column whose type is one of ``schema.common_type``."""
    dtype = field.type
    if pa.types.is_list(dtype):
        return f"{sql_type(field.with_type(dtype.value_type))}[]"
    return f"numeric({dtype.precision}, {dtype.scale})" if pa.types.is_decimal(dtype) else _SQL_TYPES[dtype]
