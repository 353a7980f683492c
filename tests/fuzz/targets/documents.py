"""A Parquet file of documents, read like in a run: footer, ids, filter, tokenizer."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from scratch import SCRATCH

from pipeline.config.summarize import DocumentsInput
from pipeline.config.types import SAMPLE
from pipeline.data import split_reader, splits
from pipeline.data.documents import open_documents
from pipeline.data.row_address import ROW_ADDRESS
from pipeline.errors import UserError
from pipeline.inference.stages.read import ReadWindows
from pipeline.io import retry
from pipeline.runs.id_rows import id_rows
from pipeline.runs.unreadable_files import UnreadableFiles

retry.time.sleep = lambda _: None  # do not wait before a broken file is read again
_TOKENIZER = (SAMPLE / "model/tokenizer.model").read_bytes()
_MAX_SPLITS = 20


def as_parquet(table: pa.Table, **options: object) -> bytes:
    """Return a table as a Parquet file."""
    file = pa.BufferOutputStream()
    pq.write_table(table, file, **options)
    return file.getvalue().to_pybytes()


def seeds() -> list[bytes]:
    """Return rows of the shipped documents, in files with several options."""
    files = []
    for number in range(4):
        table = pq.read_table(SAMPLE / f"documents/part-{number}.parquet").select(["id", "text"]).slice(0, 6)
        variants: list[dict[str, object]] = [
            {}, {"compression": "zstd", "use_dictionary": False}, {"compression": "gzip", "data_page_version": "2.0"},
            {"row_group_size": 2, "store_schema": False}, {"compression": "none", "write_page_checksum": True},
        ]  # fmt: skip
        files += [as_parquet(table, **options) for options in variants]
    return files


def target(data: bytes) -> None:
    """Read documents and rejects, or raise UserError."""
    path = Path(SCRATCH, "documents.parquet")
    path.write_bytes(data)
    read(path)


def read(path: Path) -> None:
    """Read a file like in a run."""
    options = DocumentsInput(path=str(path), keep_columns=[])
    with contextlib.suppress(UserError):
        documents = open_documents(options)
        reader = ReadWindows(documents.root.filesystem, 4, 100, _TOKENIZER, options, 16, b"salt", UnreadableFiles("fail"))
        for split, _ in zip(splits.cut_splits(documents.files, 4), range(_MAX_SPLITS), strict=False):
            with reader.attempt(split) as stage:
                for table in split_reader.read_split(split, documents.root.filesystem, ["id"], 4):
                    id_rows(table["id"], table[ROW_ADDRESS].to_numpy())
                for window, _ in stage.read(split):
                    assert len(window) <= 4
