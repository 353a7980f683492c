"""What a run did, as a record per window and a manifest of the whole run.

Pure data: what is counted and how counts add up. Who computes and where files lie is not known here.
"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from typing import Any

from pydantic import BaseModel

from pipeline.inference.effort import Effort


class OutputFile(BaseModel):
    """A Parquet file that a run wrote. path: within the output folder."""

    path: str
    rows: int
    bytes: int


class Example(BaseModel):
    """A document's opening beside its summary, for people to look at."""

    id: str
    opening: str
    summary: str


class WindowRecord(BaseModel):
    """What became of one window of documents. actor: the one that decoded it, by Ray's id."""

    actor: str
    documents: int
    rejected: dict[str, int]
    truncated: int
    reached_length_limit: int
    source_tokens: int
    summary_tokens: int
    effort: Effort
    files: list[OutputFile]
    examples: list[Example]


class Counts(BaseModel):
    """Documents and tokens of a run. read = summarized + the sum of rejected."""

    read: int = 0
    summarized: int = 0
    rejected: dict[str, int] = {}
    truncated: int = 0
    reached_length_limit: int = 0
    source_tokens: int = 0
    summary_tokens: int = 0

    def with_window(self, window: WindowRecord) -> Counts:
        """The counts with a window's added."""
        rejected = Counter(self.rejected) + Counter(window.rejected)
        return Counts(
            read=self.read + window.documents,
            summarized=self.summarized + window.documents - sum(window.rejected.values()),
            rejected=dict(rejected),
            truncated=self.truncated + window.truncated,
            reached_length_limit=self.reached_length_limit + window.reached_length_limit,
            source_tokens=self.source_tokens + window.source_tokens,
            summary_tokens=self.summary_tokens + window.summary_tokens,
        )


class InputFile(BaseModel):
    """A Parquet file that a run read."""

    path: str
    rows: int
    bytes: int
    modified: datetime | None


class Manifest(BaseModel):
    """``runs/<run_id>/manifest.json``. startup_s: until the first window could be decoded; seconds: from there on.

    actors: that decoded any. limits: what bounded the speed, in words.
    """

    format: int = 1
    run_id: str
    started_at: datetime
    finished_at: datetime
    startup_s: float
    seconds: float
    model_fingerprint: str
    config: dict[str, Any]
    decoding: dict[str, Any]
    versions: dict[str, str]
    actors: int
    counts: Counts
    effort: Effort
    limits: str
    input_files: list[InputFile]
    output_files: list[OutputFile]
