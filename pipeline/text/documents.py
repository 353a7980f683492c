"""Document stores: which Parquet files make one, whether they fit the configuration, and which rows are no documents.

Knows columns, types and texts; nothing about tokens or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import DocumentsInput
from pipeline.errors import UserError
from pipeline.storage import Place, StoredFile, in_words, place

_FOOTERS_AT_A_TIME = 16
_FOOTERS_ASKED_FOR = 1024
"""Ahead: what a pool holds for each is more than what is kept of a file."""
_SHOWN_COLUMNS = 20
NO_TOKEN = ("empty_text", "the text has no subword that the model reads")
"""The rejection of a text that turns out to be nothing to the tokenizer."""


@dataclass(frozen=True)
class DocumentFile:
    """One Parquet file of a store. row_groups: rows of each."""

    file: StoredFile
    row_groups: tuple[int, ...]
    schema: pa.Schema

    @property
    def rows(self) -> int:
        """Documents in it."""
        return sum(self.row_groups)


@dataclass(frozen=True)
class DocumentStore:
    """The files of a store, all with the columns that the configuration names."""

    root: Place
    files: Sequence[DocumentFile]

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
        UserError: nothing is there, a file is not Parquet, or a column is missing or of another type.
    """
    root = place(config.path, "--input.path")
    found = root.parquet_files(recursive=True)
    schemas: dict[pa.Schema, pa.Schema] = {}  # one for all files that have it: a store may be a million files
    with ThreadPoolExecutor(_FOOTERS_AT_A_TIME) as pool:
        files: list[DocumentFile] = []
        for start in range(0, len(found), _FOOTERS_ASKED_FOR):
            for file in pool.map(lambda file: _read_footer(root, file), found[start : start + _FOOTERS_ASKED_FOR]):
                files.append(replace(file, schema=schemas.setdefault(file.schema, file.schema)))
    for file in files:
        _check_columns(file, config)
    for column in (config.id_column, *config.keep_columns):
        types = {file.schema.field(column).type: file.file.path for file in files}
        if len(types) > 1:
            described = " but ".join(f"{kind} in {path}" for kind, path in types.items())
            raise UserError(f"column {column!r} is {described}; all files of a store must agree")
    return DocumentStore(root, files)


def _read_footer(root: Place, file: StoredFile) -> DocumentFile:
    try:
        with pq.ParquetFile(file.path, filesystem=root.filesystem) as parquet:
            groups = (parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups))
            return DocumentFile(file, tuple(groups), parquet.schema_arrow.remove_metadata())
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{file.path} is not a readable Parquet file: {in_words(error)}; mend it or set {root.option}"
        ) from None


def _check_columns(file: DocumentFile, config: DocumentsInput) -> None:
    wanted = [("id_column", config.id_column), ("text_column", config.text_column)]
    wanted += [("keep_columns", column) for column in config.keep_columns]
    for option, column in wanted:
        if column not in file.schema.names:
            shown = ", ".join(file.schema.names[:_SHOWN_COLUMNS]) or "none"
            raise UserError(f"column {column!r} is not in {file.file.path} (it has: {shown}); set --input.{option}")
    id_type, text_type = file.schema.field(config.id_column).type, file.schema.field(config.text_column).type
    if not (pa.types.is_integer(id_type) or _is_text(id_type)):
        raise UserError(
            f"column {config.id_column!r} of {file.file.path} is {id_type}, not a string or an integer; set --input.id_column"
        )
    if not _is_text(text_type):
        raise UserError(
            f"column {config.text_column!r} of {file.file.path} is {text_type}, not a string; set --input.text_column"
        )


def _is_text(kind: pa.DataType) -> bool:
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
