"""Rows of an input and their columns. A row that cannot be read is a RowError."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from pipeline.config.prepare import PairsInput
from pipeline.errors import UserError

Row = dict[str, Any]

COLUMN_CHECK_ROWS = 1000
"""A column that is in none of the first rows does not exist."""

MAX_LISTED = 20
"""Columns or files listed in a message, at most."""

_MAX_NAME_CHARS = 40


class RowError(NamedTuple):
    """Reason why a row cannot be used: a short code, and what is wrong with it."""

    reason: str
    detail: str = ""


RowStream = Iterator[tuple[str, Row | RowError]]
"""The origin of each row (file and line, or a row number counted from 0), and the row."""


def get_value(row: Row, column: str) -> Any:
    """Return a column's value, or None if the row does not have it; ``a.b`` is field b of column a."""
    if column in row:
        return row[column]
    parent, _, field = column.rpartition(".")
    fields = get_value(row, parent) if parent else None
    return fields.get(field) if isinstance(fields, dict) else None


def _has_column(row: Row, column: str) -> bool:
    parent, _, field = column.rpartition(".")
    fields = get_value(row, parent) if parent else None
    return column in row or (isinstance(fields, dict) and field in fields)


def configured_columns(options: PairsInput) -> dict[str, str]:
    """Return the column names that are set, by option."""
    columns = {name: getattr(options, name) for name in ("source_column", "target_column", "id_column", "style_column")}
    return {option: column for option, column in columns.items() if column is not None}


def check_pair_columns(rows: RowStream, path: str, options: PairsInput, *, is_table: bool) -> RowStream:
    """Pass rows on; raise UserError once it is clear that no row has one of the configured columns."""
    missing, names, checked = configured_columns(options), dict[str, None](), 0
    for origin, row in rows:
        if missing and isinstance(row, dict):
            checked += 1
            names.update(dict.fromkeys(row))
            missing = {option: column for option, column in missing.items() if not _has_column(row, column)}
            if checked >= COLUMN_CHECK_ROWS:
                refuse_missing(path, missing, names, is_table=is_table)
        yield origin, row
    if checked:
        refuse_missing(path, missing, names, is_table=is_table)


def refuse_missing(path: str, missing: dict[str, str], names: Iterable[str], *, is_table: bool = False) -> None:
    """Raise UserError for the first missing column.

    Args:
        missing: missing columns, by option.
        names: the columns that the input has.
        is_table: the input is TSV or CSV, so its first line may not be a header.
    """
    for option, column in missing.items():
        listed = [name if len(name) <= _MAX_NAME_CHARS else name[:_MAX_NAME_CHARS] + "…" for name in names]
        others = f" and {len(listed) - MAX_LISTED} others" if len(listed) > MAX_LISTED else ""
        header_hint = ", or --input.columns if its first line is not a header" if is_table else ""
        raise UserError(
            f"column {column!r} is not in {path} (it has: {', '.join(listed[:MAX_LISTED])}{others}); "
            f"set --input.{option}{header_hint}"
        )
