"""Document stores: which Parquet files make one, whether they fit the configuration, and which rows are no documents.

Knows columns, types and texts; nothing about tokens or models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import DocumentsInput, FetchInput
from pipeline.errors import UserError
from pipeline.storage import Place, StoredFile, in_words, place

_FOOTERS_AT_A_TIME = 16
_FOOTERS_ASKED_FOR = 1024
"""Ahead: what a pool holds for each is more than what is kept of a file."""
SHOWN_COLUMNS = 20
"""Of those that there are, where one is not."""
FETCHED, SNAPSHOTS = "_fetched.json", "_snapshots"
"""In a folder that jobs.fetch writes: which of its snapshots is the last whole one, and where they lie, hidden till then."""
ROW_BITS = 32
"""Of a row's place in a store: the file's number is above them, the row's in the file below, so that it has fewer than
``1 << ROW_BITS``."""
NO_TOKEN = ("empty_text", "the text has no subword that the model reads")
"""The rejection of a text that turns out to be nothing to the tokenizer."""


@dataclass(frozen=True)
class DocumentFile:
    """One Parquet file of a store. row_groups: rows of each."""

    file: StoredFile
    row_groups: tuple[int, ...]

    @property
    def rows(self) -> int:
        """Documents in it."""
        return sum(self.row_groups)


@dataclass(frozen=True)
class DocumentStore:
    """The files of a store, all with the columns that the configuration names.

    unread: what is wrong with the others, by path, where the configuration says to go on without them; unread_files: these.
    """

    root: Place
    files: Sequence[DocumentFile]
    unread: Mapping[str, str] = field(default_factory=dict)
    unread_files: Sequence[StoredFile] = ()

    @property
    def rows(self) -> int:
        """Documents in all files."""
        return sum(file.rows for file in self.files)

    @property
    def bytes(self) -> int:
        """Bytes of all files."""
        return sum(file.file.size for file in self.files)


def open_store(config: DocumentsInput) -> DocumentStore:
    """Find a store's files and read their footers.

    Raises:
        UserError: nothing is there; or a file is not Parquet, or a column of it is missing, of another type, or of another
            one than in the first file, and ``on_bad_file`` is "fail" or there is no other file.
    """
    root = snapshot_of(place(config.path, "--input.path"))
    found = root.parquet_files(recursive=True)
    first: dict[str, tuple[pa.DataType, str]] = {}  # of each column that is handed on: its type in a store, and the file
    files: list[DocumentFile] = []
    unread: dict[str, str] = {}
    unread_files: list[StoredFile] = []
    with ThreadPoolExecutor(_FOOTERS_AT_A_TIME) as pool:
        for start in range(0, len(found), _FOOTERS_ASKED_FOR):
            some = found[start : start + _FOOTERS_ASKED_FOR]
            for file, footer in zip(some, pool.map(lambda file: _read_footer(root, file), some), strict=True):
                try:
                    if isinstance(footer, UserError):
                        raise footer
                    row_groups, schema = footer
                    _check_columns(file, schema, config, first)
                    files.append(DocumentFile(file, row_groups))
                except UserError as error:
                    if config.on_bad_file == "fail":
                        raise
                    unread[file.path] = str(error)
                    unread_files.append(file)
    if not files:
        raise UserError(next(iter(unread.values())))
    return DocumentStore(root, files, unread, unread_files)


def snapshot_of(root: Place) -> Place:
    """The last snapshot that jobs.fetch left whole in a folder; of another folder, itself."""
    found = fetched(root)
    return root if found is None else root.child(SNAPSHOTS).child(found["folder"])


def fetched(root: Place) -> dict[str, Any] | None:
    """What jobs.fetch wrote of the snapshot that it left whole; None in another folder."""
    pointer = root.child(FETCHED)
    if not pointer.exists():
        return None
    try:
        found = json.loads(pointer.read())
        return {"folder": str(found["folder"]), "rows": int(found["rows"]), "request": dict(found["request"])}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{pointer.uri} is broken; remove it and run jobs.fetch again, or set {root.option}") from None


def stored_files(root: Place) -> list[StoredFile]:
    """The Parquet files of a store, with those of an earlier snapshot that is still there."""
    return (root.child(SNAPSHOTS) if root.child(FETCHED).exists() else root).parquet_files(recursive=True)


def _read_footer(root: Place, file: StoredFile) -> tuple[tuple[int, ...], pa.Schema] | UserError:
    try:
        with pq.ParquetFile(file.path, filesystem=root.filesystem) as parquet:
            groups = tuple(parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups))
            if any(rows < 0 for rows in groups) or sum(groups) >= 1 << ROW_BITS:
                raise pa.ArrowInvalid(f"it says that it has {sum(groups):,} rows")
            return groups, parquet.schema_arrow.remove_metadata()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # the last of a column's name
        return UserError(
            f"{file.path} is not a readable Parquet file: {in_words(error)}; mend it, set {root.option}, or go on without it: "
            "--input.on_bad_file skip"
        )


def _check_columns(
    file: StoredFile, schema: pa.Schema, config: DocumentsInput, first: dict[str, tuple[pa.DataType, str]]
) -> None:
    """Raises UserError if columns do not fit the configuration, or the types that the first file had, which are kept."""
    check_columns(schema, config, file.path)
    for column in (config.id_column, *config.keep_columns):
        here = without_views(schema.field(column).type)
        kind, path = first.setdefault(column, (here, file.path))
        if kind != here:
            raise UserError(f"column {column!r} is {kind} in {path} but {here} in {file.path}; all files of a store must agree")


def check_columns(schema: pa.Schema, options: DocumentsInput | FetchInput, where: str) -> None:
    """Raises UserError if columns of documents are not there, or are no ids or texts. where: what has the schema."""
    for option, names in (
        ("id_column", [options.id_column]),
        ("text_column", [options.text_column]),
        ("keep_columns", options.keep_columns),
    ):
        for name in names:
            if name not in schema.names:
                shown = ", ".join(schema.names[:SHOWN_COLUMNS]) or "none"
                raise UserError(f"column {name!r} is not in {where} (it has: {shown}); set --input.{option}")
            if schema.names.count(name) > 1:
                raise UserError(f"column {name!r} is in {where} more than once; mend it, or set --input.{option}")
    kind = without_views(schema.field(options.id_column).type)
    if not (pa.types.is_integer(kind) or is_text(kind)):
        raise UserError(
            f"column {options.id_column!r} of {where} is {kind}, not a string or an integer; cast it, or set --input.id_column"
        )
    kind = without_views(schema.field(options.text_column).type)
    if not is_text(kind):
        raise UserError(
            f"column {options.text_column!r} of {where} is {kind}, not a string; cast it, or set --input.text_column"
        )


def without_views(kind: pa.DataType) -> pa.DataType:
    """The type with strings and bytes in the place of Arrow's views of them, which DataFusion and others write: Arrow itself
    cannot take rows out of those yet (as of 26)."""
    plain = _without_views(kind)
    return kind if plain == kind else plain  # what has none keeps the names and notes of its parts


def _without_views(kind: pa.DataType) -> pa.DataType:
    def inside(field: pa.Field) -> pa.Field:
        return field.with_type(without_views(field.type))

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


def texts_of(column: pa.ChunkedArray) -> list[str | None]:
    """A column's values, strings as Python strings: bytes that are not UTF-8, lone surrogates among them, become U+FFFD."""
    try:
        column.validate(full=True)
        texts: list[str | None] = column.to_pylist()
        return texts
    except (pa.ArrowInvalid, UnicodeDecodeError):
        raw = column.cast(pa.large_binary()).to_pylist()
        return [None if text is None else text.decode("utf-8", "replace") for text in raw]


def values_of(column: Any) -> list[Any]:
    """An Arrow column as Python values; bytes of a string that are no UTF-8 become U+FFFD."""
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: Any) -> Any:
    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.ListScalar | pa.LargeListScalar):
        return [_value(inner) for inner in scalar.values or ()]
    if isinstance(scalar, pa.StructScalar):
        return {name: _value(scalar[name]) for name in scalar}
    if isinstance(scalar, pa.StringScalar | pa.LargeStringScalar):
        return scalar.as_buffer().to_pybytes().decode(errors="replace")
    return scalar.as_py()


def rejection(has_id: bool, text: str | None, max_chars: int) -> tuple[str, str] | tuple[None, None]:
    """Why a row is no document to summarize: the reason's code and a detail, or None twice if it is one."""
    if not has_id:
        return "null_id", "the row has no id"
    if text is None:
        return "null_text", "the text is null"
    if not text or text.isspace():
        return "empty_text", "the text is empty" if not text else f"the text is {len(text)} characters of white space"
    if len(text) > max_chars:
        return "too_long", f"the text has {len(text)} characters, over --input.max_chars {max_chars}"
    return None, None
