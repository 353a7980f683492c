"""What a run's stages hand on: a window of documents as one row of Ray Data's, and what travels with it.

    units ── reading.py ──> ids ── summarizer.py ──> summary ids ── writing.py ──> a record of the window

Text stays out of the tables between them but for the openings of a few examples. Rejected rows travel along without
ids, so that a window is written as a whole: it is one row (columns.as_row), for Ray Data cuts and joins blocks of rows as it
sees fit. Which stage runs where, and how often at a time, is run.py's business.

Nothing here needs torch, whose import would take longer than many a task does.
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

# Columns between the stages; a user's own have no such prefix, which plan.py checks.
PRIVATE_PREFIX = "nightshift."
ID_KEY, CONTENT_KEY = PRIVATE_PREFIX + "id_key", PRIVATE_PREFIX + "content_key"
IDS, SOURCE_TOKENS, BYTE_TOKENS, OPENING = (
    PRIVATE_PREFIX + name for name in ("ids", "source_tokens", "byte_tokens", "opening")
)
REASON, DETAIL = PRIVATE_PREFIX + "reason", PRIVATE_PREFIX + "detail"
SUMMARY_IDS, SCORE, FINISHED = (PRIVATE_PREFIX + name for name in ("summary_ids", "score", "finished"))
# Columns of a window's row that are not of its documents.
METADATA, DECODED_AT = PRIVATE_PREFIX + "passport", PRIVATE_PREFIX + "done_at"


@dataclass(frozen=True)
class WindowMetadata:
    """What travels with a window: unit and number, by which it is named, and what a WindowRecord says beside of it."""

    split: int
    number: int
    last: bool
    skipped: Mapping[str, int] = field(default_factory=dict)
    unread: Mapping[str, UnreadRows] = field(default_factory=dict)
    timings: StageTimings = field(default_factory=StageTimings)
    actor: str = ""

    @property
    def name(self) -> str:
        """Of the window's files."""
        return f"{self.split:06}-{self.number:04}"


_METADATA_TYPE: TypeAdapter[WindowMetadata] = TypeAdapter(WindowMetadata)


def window_to_row(window: pa.Table, passport: WindowMetadata) -> pa.Table:
    """A window as it travels."""
    row = table_to_row(window)
    for column, value in ((METADATA, _METADATA_TYPE.dump_json(passport).decode()), (DECODED_AT, time.time())):
        row = row.append_column(column, pa.array([value]))
    return row


def row_to_window(row: pa.Table) -> tuple[pa.Table, WindowMetadata]:
    """The window, and what travels with it."""
    window = row_to_table(row.drop_columns([METADATA, DECODED_AT]))
    return window, _METADATA_TYPE.validate_json(row[METADATA][0].as_py())
