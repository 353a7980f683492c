"""A Parquet file of strangers' documents, read as a run does: footer, census, screening, subwords."""

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

retry.time.sleep = lambda _: None  # nobody waits for a broken file to recover
_TOKENIZER = (SAMPLE / "model/tokenizer.model").read_bytes()
_MOST_UNITS = 20


def as_parquet(table: pa.Table, **options: object) -> bytes:
    """A table as a file."""
    file = pa.BufferOutputStream()
    pq.write_table(table, file, **options)
    return file.getvalue().to_pybytes()


def seeds() -> list[bytes]:
    """Rows of the shipped documents, in files of several makes."""
    found = []
    for number in range(4):
        table = pq.read_table(SAMPLE / f"documents/part-{number}.parquet").select(["id", "text"]).slice(0, 6)
        makes: list[dict[str, object]] = [
            {}, {"compression": "zstd", "use_dictionary": False}, {"compression": "gzip", "data_page_version": "2.0"},
            {"row_group_size": 2, "store_schema": False}, {"compression": "none", "write_page_checksum": True},
        ]  # fmt: skip
        found += [as_parquet(table, **make) for make in makes]
    return found


def target(data: bytes) -> None:
    """Read it; whatever it holds, documents, rejects or a UserError come of it."""
    path = Path(SCRATCH, "documents.parquet")
    path.write_bytes(data)
    read(path)


def read(path: Path) -> None:
    """Read a file as a run does."""
    options = DocumentsInput(path=str(path), keep_columns=[])
    with contextlib.suppress(UserError):
        store = open_documents(options)
        stage = ReadWindows(store.root.filesystem, 4, 100, _TOKENIZER, options, 16, b"salt", UnreadableFiles("fail"))
        for unit, _ in zip(splits.cut_splits(store.files, 4), range(_MOST_UNITS), strict=False):
            with stage.attempt(unit) as stage:
                for table in split_reader.read_split(unit, store.root.filesystem, ["id"], 4):
                    id_rows(table["id"], table[ROW_ADDRESS].to_numpy())
                for window, _passport in stage.read(unit):
                    assert len(window) <= 4
