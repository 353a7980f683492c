"""Find the Parquet files of an input of documents and check their columns against the configuration.

It deals with columns and types only, not with tokens or models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.summarize import DocumentsInput
from pipeline.config.tables import FetchInput
from pipeline.data.arrow import is_text, plain_type
from pipeline.data.row_address import MAX_FILE_ROWS
from pipeline.data.snapshots import POINTER, SNAPSHOTS, current_snapshot
from pipeline.errors import UserError, describe_error
from pipeline.io.location import Location, StoredFile, open_location
from pipeline.io.parallel import map_ahead

MAX_LISTED_COLUMNS = 20
"""Maximum columns that an error message lists."""


@dataclass(frozen=True)
class DocumentFile:
    """One Parquet file of an input.

    Attributes:
        row_groups: Rows of each row group.
    """

    file: StoredFile
    row_groups: tuple[int, ...]

    @property
    def rows(self) -> int:
        return sum(self.row_groups)


@dataclass(frozen=True)
class DocumentSet:
    """An input: its files that have all configured columns, and those that are skipped.

    Attributes:
        unread: Why each skipped file cannot be read, by path.
        unread_files: The skipped files.
    """

    root: Location
    files: Sequence[DocumentFile]
    unread: Mapping[str, str] = field(default_factory=dict)
    unread_files: Sequence[StoredFile] = ()

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def bytes(self) -> int:
        return sum(file.file.size for file in self.files)


def open_documents(config: DocumentsInput) -> DocumentSet:
    """Find the files of an input and read their footers.

    Raises:
        UserError: There are no files. Or a file is not Parquet, lacks a column, or has a column of an unsupported type or of
            another type than in the first file, and ``on_bad_file`` is "fail" or no file is left.
    """
    root = current_snapshot(open_location(config.path, "--input.path"))
    stored_files = root.parquet_files(recursive=True)
    first_types: dict[str, tuple[pa.DataType, str]] = {}
    files: list[DocumentFile] = []
    unread: dict[str, str] = {}
    unread_files: list[StoredFile] = []
    skip_advice = f"; repair it, set {root.option}, or skip such files with --input.on_bad_file skip"
    advice = skip_advice if config.on_bad_file == "fail" else ""
    footers = map_ahead(lambda file: _read_footer(root, file, advice), stored_files)
    for file, footer in zip(stored_files, footers, strict=True):
        try:
            if isinstance(footer, UserError):
                raise footer
            row_groups, schema = footer
            _check_same_types(file, schema, config, first_types)
            files.append(DocumentFile(file, row_groups))
        except UserError as error:
            if config.on_bad_file == "fail":
                raise
            unread[file.path] = str(error)
            unread_files.append(file)
    if not files:
        first = next(iter(unread.values()))
        raise UserError(f"no file of {config.path} can be read; repair them, or set {root.option}. The first: {first}")
    return DocumentSet(root, files, unread, unread_files)


def list_files(root: Location) -> list[StoredFile]:
    """List the Parquet files of an input, including those of earlier snapshots that still exist."""
    return (root.child(SNAPSHOTS) if root.child(POINTER).exists() else root).parquet_files(recursive=True)


def _read_footer(root: Location, file: StoredFile, advice: str) -> tuple[tuple[int, ...], pa.Schema] | UserError:
    try:
        with pq.ParquetFile(file.path, filesystem=root.filesystem) as parquet:
            groups = tuple(parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups))
            if any(rows < 0 for rows in groups) or sum(groups) > MAX_FILE_ROWS:
                raise pa.ArrowInvalid(f"its footer claims {sum(groups):,} rows")
            return groups, parquet.schema_arrow.remove_metadata()
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:  # a column name may not be UTF-8
        return UserError(f"{file.path} is not a readable Parquet file: {describe_error(error)}{advice}")


def _check_same_types(
    file: StoredFile, schema: pa.Schema, config: DocumentsInput, first_types: dict[str, tuple[pa.DataType, str]]
) -> None:
    """Raise UserError unless the columns fit the configuration and the first file, whose types are put into ``first_types``."""
    check_columns(schema, config, file.path)
    for column in (config.id_column, *config.keep_columns):
        data_type = plain_type(schema.field(column).type)
        first_type, path = first_types.setdefault(column, (data_type, file.path))
        if first_type != data_type:
            raise UserError(
                f"column {column!r} is {first_type} in {path} but {data_type} in {file.path}; "
                "all files of an input must have the same types"
            )


def check_columns(schema: pa.Schema, options: DocumentsInput | FetchInput, source: str) -> None:
    """Raise UserError if a configured column is missing or ambiguous, or the id or text column has an unsupported type.

    Args:
        source: The file or table that has the schema, for messages.
    """
    for option, names in (
        ("id_column", [options.id_column]),
        ("text_column", [options.text_column]),
        ("keep_columns", options.keep_columns),
    ):
        for name in names:
            if name not in schema.names:
                listed = ", ".join(schema.names[:MAX_LISTED_COLUMNS]) or "none"
                raise UserError(f"column {name!r} is not in {source} (it has: {listed}); set --input.{option}")
            if schema.names.count(name) > 1:
                raise UserError(f"column {name!r} is in {source} more than once; rename one, or set --input.{option}")
    id_type = plain_type(schema.field(options.id_column).type)
    if not (pa.types.is_integer(id_type) or is_text(id_type)):
        raise UserError(
            f"column {options.id_column!r} of {source} is {id_type}, not a string or an integer; cast it, or set "
            "--input.id_column"
        )
    text_type = plain_type(schema.field(options.text_column).type)
    if not is_text(text_type):
        raise UserError(
            f"column {options.text_column!r} of {source} is {text_type}, not a string; cast it, or set --input.text_column"
        )
