"""Rows from lines of text: TSV, CSV, JSON lines, and lines that match a regular expression. One line is held at a time."""

from __future__ import annotations

import csv
import functools
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import cast

from fsspec.core import OpenFile

from pipeline.config.prepare import PairsInput
from pipeline.errors import UserError
from pipeline.prepare.files import READ_BYTES, Role, as_user_error
from pipeline.prepare.rows import Row, RowError, RowStream, configured_columns

MAX_LINE_BYTES = 1 << 26
"""Longer lines and CSV records are errors."""

_Lines = Iterator[tuple[str, str | RowError]]
"""The origin of each line, as ``file:line``, and its text."""


def read_lines(name: str, file: OpenFile, path: str, role: Role) -> _Lines:
    """Yield lines of UTF-8 text without line ends. Bytes that are not UTF-8 become U+FFFD."""
    with as_user_error(path, role), file as opened:
        stream = io.BufferedReader(cast(io.RawIOBase, opened), READ_BYTES)
        for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE_BYTES), b""), 1):
            origin = f"{name}:{number}"
            if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
                while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
                yield origin, RowError("line_too_long", f"over {MAX_LINE_BYTES:,} bytes")
            else:
                yield origin, line.decode("utf-8-sig" if number == 1 else "utf-8", errors="replace").rstrip("\r\n")


def line_parser(file_format: str, path: str, options: PairsInput) -> Callable[[_Lines], RowStream]:
    """Return the function that turns the lines of one file into rows."""
    if file_format == "jsonl":
        return functools.partial(_parse_lines, parse=_parse_json)
    if file_format == "lines":
        return functools.partial(_parse_lines, parse=_pattern_parser(path, options))
    split = _split_tsv if file_format == "tsv" else _split_csv
    return lambda lines: _table_rows(split(lines), options.columns)


def _parse_lines(lines: _Lines, parse: Callable[[str], Row | RowError]) -> RowStream:
    """Yield a row for each line that is not blank."""
    for origin, line in lines:
        if isinstance(line, RowError):
            yield origin, line
        elif line.strip():
            yield origin, parse(line)


def _parse_json(line: str) -> Row | RowError:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return RowError("not_json", str(error))
    return row if isinstance(row, dict) else RowError("not_an_object", f"a JSON {type(row).__name__}")


def _pattern_parser(path: str, options: PairsInput) -> Callable[[str], Row | RowError]:
    if options.pattern is None:
        raise UserError(f"{path} is read as plain lines, which need a pattern; set --input.pattern or another --input.format")
    try:
        pattern = re.compile(options.pattern)
    except re.error as error:
        raise UserError(f"--input.pattern is not a regular expression: {error}") from None
    for column in configured_columns(options).values():
        if column not in pattern.groupindex:
            raise UserError(f"--input.pattern has no group (?P<{column}>…)")

    def parse(line: str) -> Row | RowError:
        match = pattern.fullmatch(line)
        return match.groupdict() if match else RowError("no_match", f"{line[:40]!r}")

    return parse


_Records = Iterator[tuple[str, list[str] | RowError]]
"""The origin of each TSV or CSV record, and its fields."""


def _split_tsv(lines: _Lines) -> _Records:
    """Split lines at tabs and skip empty ones. There is no quoting."""
    for origin, line in lines:
        if line:
            yield origin, line if isinstance(line, RowError) else line.split("\t")


def _split_csv(lines: _Lines) -> _Records:
    """Yield records as in RFC 4180 and skip empty lines between them. A quoted field may span lines."""
    csv.field_size_limit(MAX_LINE_BYTES)
    record: list[str] = []
    chars, in_quotes, start = 0, False, ""
    for origin, line in lines:
        if isinstance(line, RowError):
            yield origin, line
            continue
        if not line and not record:
            continue
        start = start if record else origin
        record.append(line)
        chars += len(line)
        in_quotes ^= line.count('"') % 2 == 1
        is_incomplete = in_quotes and chars < MAX_LINE_BYTES
        if is_incomplete and len(record) > 1:
            continue
        try:
            yield start, next(csv.reader(["\n".join(record)], strict=True))
        except csv.Error as error:
            if is_incomplete:  # an open quoted field, and not just a quote within an unquoted one
                continue
            yield start, RowError("not_csv", str(error))
        record, chars, in_quotes = [], 0, False
    if record:
        yield start, RowError("not_csv", "a quotation mark is not closed")


def _table_rows(records: Iterable[tuple[str, list[str] | RowError]], columns: list[str] | None) -> RowStream:
    """Yield the rows of one file; its first record names the columns if ``columns`` is None."""
    for origin, fields in records:
        if isinstance(fields, RowError):
            yield origin, fields
        elif columns is None:
            columns = fields
        elif len(fields) != len(columns):
            yield origin, RowError("wrong_field_count", f"{len(fields)}, not {len(columns)}")
        else:
            yield origin, dict(zip(columns, fields, strict=True))
