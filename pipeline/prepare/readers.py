"""Reading rows one at a time from files, archives and data sets, whatever form they come in.

Knows formats, columns and where a row stands; nothing of pairs or splits of them. A row that cannot be read comes out as a
``RowError`` and never stops the stream; an input that cannot be read is a UserError. Memory holds one line, or one batch of a
columnar file, whatever the input's size.
"""

from __future__ import annotations

import csv
import functools
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, cast

import fsspec
import pyarrow.parquet as pq
from fsspec.core import OpenFile

from pipeline.config.prepare import PairsInput
from pipeline.data.arrow import to_values
from pipeline.errors import UserError, describe_error
from pipeline.io.secrets import refuse_secrets
from pipeline.prepare.files import FORMATS, READ_BYTES, Role, ending_of, find_files, reading

Row = dict[str, Any]


class RowError(NamedTuple):
    """Why a row is none: a short code that can be counted, and what was found there."""

    reason: str
    detail: str = ""


Rows = Iterator[tuple[str, Row | RowError]]
"""Where each row stands (file and line, or row counted from 0), and the row."""

_Lines = Iterator[tuple[str, str | RowError]]

_LONGEST_LINE_BYTES = 1 << 26
_COLUMNS_WITHIN_ROWS = 1000
_SHOWN_COLUMNS, _SHOWN_CHARS = 20, 40
_ARCHIVES = {".zip": "zip", ".tar": "tar", ".tgz": "tar", ".tbz": "tar", ".txz": "tar"}
_DATA_SET = re.compile(r"(?P<name>[^:@]+)(?::(?!:|//)(?P<subset>.+?))?(?:@(?P<split>\w[\w+.-]*))?")
_BUILDERS = frozenset({"arrow", "csv", "json", "parquet", "text", "webdataset", "xml"})
_ROLE_SPLITS = {"train": "train", "dev": "validation", "test": "test"}


def read_rows(path: str, role: Role, options: PairsInput) -> Rows:
    """The rows of an input, each with at least the columns that ``options`` names, or a Fault in its place.

    A column may be missing from some rows of a JSON file; ``value_of`` gives None for it.

    Raises:
        UserError: nothing is at ``path``, it cannot be read to its end, its format is not clear, or it has no such column.
    """
    for link in path.split("::"):
        refuse_secrets(link, f"--input.{role}")
    kind = _format_of(path, role, options)
    if kind == "datasets":
        rows = _dataset_rows(path, role)
    elif kind == "parquet":
        rows = _parquet_rows(path, role, options)
    else:
        parse = _parser(kind, path, options)
        files = find_files(path, role, kind)
        rows = (row for name, file in files for row in parse(_lines(name, file, path, role)))
    return _with_columns(itertools.islice(rows, options.max_rows), path, options, is_table=kind in ("tsv", "csv"))


def value_of(row: Row, column: str) -> Any:
    """A column's value, ``a.b`` meaning field b of column a; None where there is none."""
    if column in row:
        return row[column]
    above, _, field = column.rpartition(".")
    inner = value_of(row, above) if above else None
    return inner.get(field) if isinstance(inner, dict) else None


def _with_columns(rows: Rows, path: str, options: PairsInput, *, is_table: bool) -> Rows:
    """Pass rows on; UserError once it is clear that a column is in none of them."""
    missing, seen = _wanted(options), dict[str, None]()
    read = 0
    for where, row in rows:
        if missing and isinstance(row, dict):
            read += 1
            seen.update(dict.fromkeys(row))
            missing = {option: column for option, column in missing.items() if not _has(row, column)}
            if read >= _COLUMNS_WITHIN_ROWS:
                _require_none(path, missing, seen, is_table)
        yield where, row
    _require_none(path, missing if read else {}, seen, is_table)


def _wanted(options: PairsInput) -> dict[str, str]:
    wanted = {"source_column": options.source_column, "target_column": options.target_column, "id_column": options.id_column}
    return {option: column for option, column in wanted.items() if column is not None}


def _has(row: Row, column: str) -> bool:
    above, _, field = column.rpartition(".")
    inner = value_of(row, above) if above else None
    return column in row or (isinstance(inner, dict) and field in inner)


def _require_none(path: str, missing: dict[str, str], names: Iterable[str], is_table: bool = False) -> None:
    """UserError for the first of the missing columns, by option."""
    for option, column in missing.items():
        shown = [name if len(name) <= _SHOWN_CHARS else name[:_SHOWN_CHARS] + "…" for name in names]
        more = f" and {len(shown) - _SHOWN_COLUMNS} more" if len(shown) > _SHOWN_COLUMNS else ""
        raise UserError(
            f"{path} has no column {column!r} (it has: {', '.join(shown[:_SHOWN_COLUMNS])}{more}); set --input.{option}"
            + (", or --input.columns if its first line is no header" if is_table else "")
        )


# Which format


def _format_of(path: str, role: Role, options: PairsInput) -> str:
    """The format that is set, or else what the path looks like. UserError if that is not clear."""
    ending = ending_of(path.partition("::")[0].rstrip("*"))
    data_set = _DATA_SET.fullmatch(path)
    if options.format != "datasets" and ending in _ARCHIVES and "::" not in path:
        _name_a_member(path, role, _ARCHIVES[ending])
    if options.format != "auto":
        return options.format
    if data_set and Path(data_set["name"]).is_dir():
        return "parquet" if path == data_set["name"] and any(Path(path).rglob("*.parquet")) else "datasets"
    if data_set and data_set["name"] in _BUILDERS:
        return "datasets"
    if ending in FORMATS:
        return FORMATS[ending]
    if options.pattern:
        return "lines"
    if options.columns:
        return "tsv"
    if data_set and re.fullmatch(r"[\w.-]+(/[\w.-]+)?", data_set["name"]) and not Path(path).exists():
        return "datasets"
    raise UserError(
        f"cannot tell the format of {path}; set --input.format to tsv, csv, jsonl, parquet, lines or datasets "
        "(--input.pattern makes it lines, --input.columns tsv)"
    )


def _name_a_member(path: str, role: Role, protocol: str) -> None:
    with reading(path, role):
        members = fsspec.filesystem(protocol, fo=path).find("") or ["FILE"]
        raise UserError(
            f"{path} is an archive; set --input.{role} to a file in it, such as {protocol}://{members[-1]}::{path} "
            f"(it holds: {', '.join(members[:_SHOWN_COLUMNS])})"
        )


# Lines, and what is made of them


def _lines(name: str, file: OpenFile, path: str, role: Role) -> _Lines:
    """Lines of UTF-8 text, without their ends. Bytes that are no UTF-8 become U+FFFD."""
    with reading(path, role), file as opened:
        stream = io.BufferedReader(cast(io.RawIOBase, opened), READ_BYTES)
        for number, line in enumerate(iter(lambda: stream.readline(_LONGEST_LINE_BYTES), b""), 1):
            where = f"{name}:{number}"
            if len(line) == _LONGEST_LINE_BYTES and not line.endswith(b"\n"):
                while (rest := stream.readline(_LONGEST_LINE_BYTES)) and not rest.endswith(b"\n"):
                    pass
                yield where, RowError("line_too_long", f"over {_LONGEST_LINE_BYTES:,} bytes")
            else:
                yield where, line.decode("utf-8-sig" if number == 1 else "utf-8", errors="replace").rstrip("\r\n")


def _parser(kind: str, path: str, options: PairsInput) -> Callable[[_Lines], Rows]:
    """What makes the rows of one file from its lines."""
    if kind == "jsonl":
        return functools.partial(_line_rows, parse=_json_row)
    if kind == "lines":
        return functools.partial(_line_rows, parse=_pattern_parser(path, options))
    fields = _tsv_fields if kind == "tsv" else _csv_fields
    return lambda lines: _table_rows(fields(lines), options.columns)


def _line_rows(lines: _Lines, parse: Callable[[str], Row | RowError]) -> Rows:
    """A row from each line that is not blank."""
    for where, line in lines:
        if isinstance(line, RowError):
            yield where, line
        elif line.strip():
            yield where, parse(line)


def _json_row(line: str) -> Row | RowError:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return RowError("not_json", str(error))
    return row if isinstance(row, dict) else RowError("not_an_object", f"a JSON {type(row).__name__}")


def _pattern_parser(path: str, options: PairsInput) -> Callable[[str], Row | RowError]:
    if options.pattern is None:
        raise UserError(f"{path} is plain lines: set --input.pattern, or another --input.format")
    try:
        pattern = re.compile(options.pattern)
    except re.error as error:
        raise UserError(f"--input.pattern is not a regular expression: {error}") from None
    for column in _wanted(options).values():
        if column not in pattern.groupindex:
            raise UserError(f"--input.pattern has no group (?P<{column}>…)")

    def parse(line: str) -> Row | RowError:
        match = pattern.fullmatch(line)
        return match.groupdict() if match else RowError("no_match", f"{line[:_SHOWN_CHARS]!r}")

    return parse


def _tsv_fields(lines: _Lines) -> Iterator[tuple[str, list[str] | RowError]]:
    """Lines cut at tabs, empty ones left out. There is no quoting: a quotation mark is one."""
    for where, line in lines:
        if line:
            yield where, line if isinstance(line, RowError) else line.split("\t")


def _csv_fields(lines: _Lines) -> Iterator[tuple[str, list[str] | RowError]]:
    """Records of RFC 4180, empty lines between them left out. A quoted field may hold commas, line ends and ``""``."""
    csv.field_size_limit(_LONGEST_LINE_BYTES)
    record: list[str] = []
    size, is_open, begun = 0, False, ""
    for where, line in lines:
        if isinstance(line, RowError):
            yield where, line
            continue
        if not line and not record:
            continue
        begun = begun if record else where
        record.append(line)
        size += len(line)
        is_open ^= line.count('"') % 2 == 1
        if is_open and size < _LONGEST_LINE_BYTES and len(record) > 1:
            continue
        try:
            yield begun, next(csv.reader(["\n".join(record)], strict=True))
        except csv.Error as error:
            if is_open and size < _LONGEST_LINE_BYTES:  # by a mark that begins a field; within one it is a letter
                continue
            yield begun, RowError("not_csv", str(error))
        record, size, is_open = [], 0, False
    if record:
        yield begun, RowError("not_csv", "a quotation mark is not closed")


def _table_rows(records: Iterable[tuple[str, list[str] | RowError]], columns: list[str] | None) -> Rows:
    """Rows of one file; its first record names the columns if they are not given."""
    for where, fields in records:
        if isinstance(fields, RowError):
            yield where, fields
        elif columns is None:
            columns = fields
        elif len(fields) != len(columns):
            yield where, RowError("wrong_field_count", f"{len(fields)}, not {len(columns)}")
        else:
            yield where, dict(zip(columns, fields, strict=True))


# Columnar files and data sets


def _parquet_rows(path: str, role: Role, options: PairsInput) -> Rows:
    for name, file in find_files(path, role, "parquet"):
        with reading(path, role), file as opened, pq.ParquetFile(opened, buffer_size=1 << 20) as parquet:
            names = parquet.schema_arrow.names
            wanted = _wanted(options)
            read = {column: column if column in names else column.partition(".")[0] for column in wanted.values()}
            _require_none(name, {option: column for option, column in wanted.items() if read[column] not in names}, names)
            numbers = itertools.count()
            for batch in parquet.iter_batches(256, columns=sorted(set(read.values()))):
                for values in zip(*map(to_values, batch.columns), strict=True):
                    yield f"{name} row {next(numbers)}", dict(zip(batch.schema.names, values, strict=True))


def _dataset_rows(path: str, role: Role) -> Rows:
    """Rows of a data set of the ``datasets`` package, streamed.

    ``path`` is ``NAME[:CONFIG][@SPLIT]`` with a name of the hub or a folder, one that save_to_disk wrote included, or
    ``BUILDER:FILES`` such as ``json:data/*.json``. The split, if it is not named, goes by the input's role.
    """
    import datasets  # it takes seconds, and most inputs do without it

    datasets.disable_progress_bars()
    named = _DATA_SET.fullmatch(path)
    if named is None:
        raise UserError(f"{path} is no NAME[:CONFIG][@SPLIT]; set --input.{role}")
    name, subset, split = named["name"], named["subset"], named["split"]
    try:
        if Path(name, "state.json").exists():
            if split is not None:
                raise UserError(f"{name} is a data set without splits; set --input.{role} to it without @{split}")
            found = datasets.load_from_disk(name)
        elif Path(name, "dataset_dict.json").exists():
            splits = datasets.load_from_disk(name)
            split = split or _ROLE_SPLITS[role]
            if split not in splits:
                raise UserError(f"{name} has no split {split} (it has: {', '.join(splits)}); set --input.{role} {name}@SPLIT")
            found = splits[split]
        elif name in _BUILDERS and subset:
            found = datasets.load_dataset(name, data_files=subset, split=split or "train", streaming=True)
        else:
            found = datasets.load_dataset(name, subset, split=split or _ROLE_SPLITS[role], streaming=True)
        for number, row in enumerate(found):
            yield f"{path} row {number}", dict(row)
    except UserError:
        raise
    except Exception as error:  # the package raises what its loaders, parsers and the hub raise: no common base
        raise UserError(f"the datasets package cannot read {path}: {describe_error(error)}; set --input.{role}") from None
