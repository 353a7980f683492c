"""Document stores: which Parquet files make one, whether they fit the configuration, and which rows are no documents.

Knows columns, types and texts; nothing about tokens or models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.summarize import DocumentsInput
from pipeline.config.tables import FetchInput
from pipeline.data.arrow import is_text, plain_type
from pipeline.data.row_address import ROW_BITS
from pipeline.data.snapshots import POINTER, SNAPSHOTS, current_snapshot
from pipeline.errors import UserError, describe_error
from pipeline.io.location import Location, StoredFile, open_location
from pipeline.io.parallel import map_ahead

LISTED_COLUMNS = 20
"""Of those that there are, where one is not."""


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
class DocumentSet:
    """The files of a store, all with the columns that the configuration names.

    unread: what is wrong with the others, by path, where the configuration says to go on without them; unread_files: these.
    """

    root: Location
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


def open_documents(config: DocumentsInput) -> DocumentSet:
    """Find a store's files and read their footers.

    Raises:
        UserError: nothing is there; or a file is not Parquet, or a column of it is missing, of another type, or of another
            one than in the first file, and ``on_bad_file`` is "fail" or there is no other file.
    """
    root = current_snapshot(open_location(config.path, "--input.path"))
    found = root.parquet_files(recursive=True)
    first: dict[str, tuple[pa.DataType, str]] = {}  # of each column that is handed on: its type in a store, and the file
    files: list[DocumentFile] = []
    unread: dict[str, str] = {}
    unread_files: list[StoredFile] = []
    footers = map_ahead(lambda file: _read_footer(root, file), found)
    for file, footer in zip(found, footers, strict=True):
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
    return DocumentSet(root, files, unread, unread_files)


def list_files(root: Location) -> list[StoredFile]:
    """The Parquet files of a store, with those of an earlier snapshot that is still there."""
    return (root.child(SNAPSHOTS) if root.child(POINTER).exists() else root).parquet_files(recursive=True)


def _read_footer(root: Location, file: StoredFile) -> tuple[tuple[int, ...], pa.Schema] | UserError:
    try:
        with pq.ParquetFile(file.path, filesystem=root.filesystem) as parquet:
            groups = tuple(parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups))
            if any(rows < 0 for rows in groups) or sum(groups) >= 1 << ROW_BITS:
                raise pa.ArrowInvalid(f"it says that it has {sum(groups):,} rows")
            return groups, parquet.schema_arrow.remove_metadata()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # the last of a column's name
        return UserError(
            f"{file.path} is not a readable Parquet file: {describe_error(error)}; repair it, set {root.option}, or skip "
            "such files with --input.on_bad_file skip"
        )


def _check_columns(
    file: StoredFile, schema: pa.Schema, config: DocumentsInput, first: dict[str, tuple[pa.DataType, str]]
) -> None:
    """Raises UserError if columns do not fit the configuration, or the types that the first file had, which are kept."""
    check_columns(schema, config, file.path)
    for column in (config.id_column, *config.keep_columns):
        here = plain_type(schema.field(column).type)
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
                shown = ", ".join(schema.names[:LISTED_COLUMNS]) or "none"
                raise UserError(f"column {name!r} is not in {where} (it has: {shown}); set --input.{option}")
            if schema.names.count(name) > 1:
                raise UserError(f"column {name!r} is in {where} more than once; mend it, or set --input.{option}")
    kind = plain_type(schema.field(options.id_column).type)
    if not (pa.types.is_integer(kind) or is_text(kind)):
        raise UserError(
            f"column {options.id_column!r} of {where} is {kind}, not a string or an integer; cast it, or set --input.id_column"
        )
    kind = plain_type(schema.field(options.text_column).type)
    if not is_text(kind):
        raise UserError(
            f"column {options.text_column!r} of {where} is {kind}, not a string; cast it, or set --input.text_column"
        )
