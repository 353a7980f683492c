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

from pipeline.inference.effort import Effort
from pipeline.inference.manifest import UnreadRows
from pipeline.text.columns import as_row, from_row

# Columns between the stages; a user's own have no such prefix, which plan.py checks.
PRIVATE = "nightshift."
ID_KEY, CONTENT_KEY = PRIVATE + "id_key", PRIVATE + "content_key"
IDS, SOURCE_TOKENS, BYTE_TOKENS, OPENING = (PRIVATE + name for name in ("ids", "source_tokens", "byte_tokens", "opening"))
REASON, DETAIL = PRIVATE + "reason", PRIVATE + "detail"
SUMMARY_IDS, SCORE, FINISHED = (PRIVATE + name for name in ("summary_ids", "score", "finished"))
# Columns of a window's row that are not of its documents.
PASSPORT, DONE_AT = PRIVATE + "passport", PRIVATE + "done_at"


@dataclass(frozen=True)
class Passport:
    """What travels with a window: unit and number, by which it is named, and what a WindowRecord says beside of it."""

    unit: int
    number: int
    last: bool
    skipped: Mapping[str, int] = field(default_factory=dict)
    unread: Mapping[str, UnreadRows] = field(default_factory=dict)
    effort: Effort = field(default_factory=Effort)
    actor: str = ""

    @property
    def name(self) -> str:
        """Of the window's files."""
        return f"{self.unit:06}-{self.number:04}"


_PASSPORT: TypeAdapter[Passport] = TypeAdapter(Passport)


def windows_row(window: pa.Table, passport: Passport) -> pa.Table:
    """A window as it travels."""
    row = as_row(window)
    for column, value in ((PASSPORT, _PASSPORT.dump_json(passport).decode()), (DONE_AT, time.time())):
        row = row.append_column(column, pa.array([value]))
    return row


def of_windows_row(row: pa.Table) -> tuple[pa.Table, Passport]:
    """The window, and what travels with it."""
    window = from_row(row.drop_columns([PASSPORT, DONE_AT]))
    return window, _PASSPORT.validate_json(row[PASSPORT][0].as_py())
