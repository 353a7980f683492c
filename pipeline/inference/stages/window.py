"""The data between the stages of a run: a window of documents as one row of a Ray Data block, with its metadata.

    splits ── read.py ──> token ids ── summarize.py ──> summary ids ── write.py ──> a record of the window

A window is one row because Ray Data joins and cuts blocks of rows as it likes, and a window must be written as a whole. Texts
are not handed on, except the openings of a few examples. Rejected rows stay in their window, without token ids.

This module does not import torch, which would take longer than many tasks do.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import pyarrow as pa
from pydantic import TypeAdapter

from pipeline.data.arrow import row_to_table, table_to_row
from pipeline.runs.manifest import UnreadRows
from pipeline.runs.timings import StageTimings

PRIVATE_PREFIX = "nightshift."
"""Starts the names of the columns below; plan.py checks that no column of the input has it."""

# Columns of documents.
ID_KEY, CONTENT_KEY = PRIVATE_PREFIX + "id_key", PRIVATE_PREFIX + "content_key"
IDS, SOURCE_TOKENS, BYTE_TOKENS, OPENING = (
    PRIVATE_PREFIX + name for name in ("ids", "source_tokens", "byte_tokens", "opening")
)
REASON, DETAIL = PRIVATE_PREFIX + "reason", PRIVATE_PREFIX + "detail"
SUMMARY_IDS, SCORE, FINISHED = (PRIVATE_PREFIX + name for name in ("summary_ids", "score", "finished"))

# Columns of the row that holds a window.
METADATA, DECODED_AT = PRIVATE_PREFIX + "metadata", PRIVATE_PREFIX + "decoded_at"


@dataclass(frozen=True)
class WindowMetadata:
    """Facts about a window that the stages collect for the fields of the same names of its WindowRecord."""

    split: int
    number: int
    last: bool
    skipped: Mapping[str, int] = field(default_factory=dict)
    unread: Mapping[str, UnreadRows] = field(default_factory=dict)
    timings: StageTimings = field(default_factory=StageTimings)
    actor: str = ""

    @property
    def name(self) -> str:
        return f"{self.split:06}-{self.number:04}"


_METADATA_TYPE: TypeAdapter[WindowMetadata] = TypeAdapter(WindowMetadata)


def window_to_row(window: pa.Table, metadata: WindowMetadata) -> pa.Table:
    row = table_to_row(window)
    for column, value in ((METADATA, _METADATA_TYPE.dump_json(metadata).decode()), (DECODED_AT, time.time())):
        row = row.append_column(column, pa.array([value]))
    return row


def row_to_window(row: pa.Table) -> tuple[pa.Table, WindowMetadata]:
    """Unpack the row that ``window_to_row`` returned."""
    window = row_to_table(row.drop_columns([METADATA, DECODED_AT]))
    return window, _METADATA_TYPE.validate_json(row[METADATA][0].as_py())
