"""Records of what a run did: one per window, and a manifest of the whole run.

Pure data: defines what is counted and how counts add up. Docstrings become descriptions in manifest.schema.json.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, Field, NonNegativeInt, field_validator

from pipeline.config.summarize import DocumentsInput
from pipeline.data.rejects import RejectReason
from pipeline.runs.stats import RunStats, mean_nats
from pipeline.runs.stored import Stored
from pipeline.runs.timings import StageTimings


class OutputFile(Stored):
    """A Parquet file that a run wrote."""

    path: Annotated[str, Field(pattern=r"^(summaries|rejects)/run=[^/]+/[^/]+\.parquet$")]
    """Path relative to the output folder."""
    rows: NonNegativeInt
    bytes: NonNegativeInt
    sha256: str


class UnreadRows(Stored):
    """Rows of a file that could not be read."""

    rows: NonNegativeInt | None
    """Number of rows; null if the footer could not be read either."""
    error: str

    def __add__(self, other: UnreadRows) -> UnreadRows:
        return UnreadRows(rows=(self.rows or 0) + (other.rows or 0), error=other.error)


Index = Annotated[int, Field(ge=0, lt=1 << 31)]


class WindowRecord(Stored):
    """The result of one window."""

    split: Index = Field(alias="unit")
    number: Index
    last: bool
    """Whether it is the last window of its split."""
    actor: str
    """Ray id of the actor that decoded it."""
    documents: int
    """Summarized and rejected documents."""
    skipped: dict[str, int]
    """Documents of the split that an earlier run processed, by outcome; empty except in the last window."""
    unread: dict[str, UnreadRows]
    """Rows of the split that could not be read, by path; empty except in the last window."""
    rejected: dict[str, int]
    """Rejected documents by reason."""
    truncated: int
    reached_length_limit: int
    source_tokens: int
    summary_tokens: int
    timings: StageTimings = Field(alias="effort")
    files: list[OutputFile]
    stats: RunStats = Field(alias="digest")


class Counts(Stored):
    """Documents and tokens of a run, where read = skipped + summarized + rejected."""

    read: int = 0
    unread: int = 0
    """Rows that could not be read."""
    skipped: dict[str, int] = Field({})
    """Unchanged documents that an earlier run processed, by outcome: "summarized" or "rejected"."""
    summarized: int = 0
    rejected: dict[str, int] = Field({})
    """Rejected documents by reason."""
    truncated: int = 0
    """Documents of which the model read only the first part."""
    reached_length_limit: int = 0
    """Summaries that the length limit ended."""
    source_tokens: int = 0
    """Tokens of the summarized documents before truncation."""
    summary_tokens: int = 0

    def with_window(self, window: WindowRecord) -> Counts:
        return Counts(
            read=self.read + window.documents + sum(window.skipped.values()),
            unread=self.unread + sum(unread.rows or 0 for unread in window.unread.values()),
            skipped=dict(Counter(self.skipped) + Counter(window.skipped)),
            summarized=self.summarized + window.documents - sum(window.rejected.values()),
            rejected=dict(Counter(self.rejected) + Counter(window.rejected)),
            truncated=self.truncated + window.truncated,
            reached_length_limit=self.reached_length_limit + window.reached_length_limit,
            source_tokens=self.source_tokens + window.source_tokens,
            summary_tokens=self.summary_tokens + window.summary_tokens,
        )

    @property
    def outcomes(self) -> dict[str, int]:
        return {
            "summarized": self.summarized,
            "rejected": sum(self.rejected.values()),
            "skipped": sum(self.skipped.values()),
            "unread": self.unread,
        }

    @property
    def done(self) -> int:
        """Documents that this run summarized or rejected."""
        return self.summarized + sum(self.rejected.values())

    @property
    def reject_share(self) -> float:
        """Share of rejected and unread documents: of all documents or of the new ones, whichever is larger.

        Rows without a unique id are rejected again in every run, so they do not count as new.
        """
        bad = sum(self.rejected.values()) + self.unread
        new = bad - self.rejected.get(RejectReason.NULL_ID, 0) - self.rejected.get(RejectReason.DUPLICATE_ID, 0)
        return max(bad / max(self.read + self.unread, 1), new / max(self.summarized + new, 1))


class StatsSummary(Stored):
    """Averages over a run's documents, to compare runs; null if there are no documents. Shares are from 0 to 1."""

    documents: int = 0
    """Summarized documents."""
    mean_source_tokens: float | None = None
    """Tokens per document before truncation."""
    mean_summary_tokens: float | None = None
    mean_score: float | None = None
    """Log-probability per token (nats)."""
    at_limit: float | None = None
    """Share of summaries that the length limit ended."""
    truncated: float | None = None
    """Share of documents of which the model read only the first part."""
    repeated: float | None = None
    """Estimated share of summaries whose text another summary has."""
    empty: float | None = None
    """Share of summaries without a word."""
    byte_tokens: float | None = None
    """Share of the tokens read that are unknown, or a byte of a character outside the vocabulary."""

    @classmethod
    def of(cls, counts: Counts, stats: RunStats) -> StatsSummary:
        documents = counts.summarized
        if not documents:
            return cls()
        return cls(
            documents=documents,
            mean_source_tokens=counts.source_tokens / documents,
            mean_summary_tokens=counts.summary_tokens / documents,
            mean_score=mean_nats(stats.score_micronats, documents - stats.unscored),
            at_limit=counts.reached_length_limit / documents,
            truncated=counts.truncated / documents,
            repeated=stats.duplicates.share,
            empty=stats.empty / documents,
            byte_tokens=stats.byte_tokens / max(stats.read_tokens, 1),
        )


class RemovedDocuments(Stored):
    """Documents of earlier runs that are no longer in the input. A run that skipped files does not look for them."""

    documents: int = 0
    ids: list[str] = Field([])
    """The first ids in order, as strings; ``runs/<run_id>/gone.parquet`` has up to 100,000."""


class InputFile(Stored):
    """A Parquet file that a run read."""

    path: str
    rows: int
    bytes: int
    modified: datetime | None


class Manifest(Stored):
    """``runs/<run_id>/manifest.json``."""

    format: int = 2
    run_id: str
    started_at: AwareDatetime
    finished_at: AwareDatetime
    startup_s: float
    """Seconds until the first window could be decoded, in the last command of the run."""
    seconds: float
    """Seconds from then on."""
    model_fingerprint: str
    config: dict[str, Any]
    decoding: dict[str, Any]
    versions: dict[str, str]
    actors: int
    """Actors of the last command that decoded a window."""
    ledger: int
    """Sequence number of the latest finished run when this one started, whose results it reuses; 0 with ``--full``."""
    counts: Counts
    reject_share: float
    """The reject share of the counts, or the share of unreadable files in bytes, whichever is larger."""
    resumed: int = Field(alias="taken_over")
    """Documents that earlier, interrupted commands of this run processed."""
    removed: RemovedDocuments = Field(alias="gone")
    stats: StatsSummary = Field(StatsSummary(), alias="digest")
    """Averages to compare with other runs."""
    timings: StageTimings = Field(alias="effort")
    limits: str
    """One line that says what limited the speed; empty if nothing was summarized."""
    input_files: list[InputFile]
    unread: dict[str, UnreadRows]
    """Files that could not be read completely, by path."""
    output_files: list[OutputFile]

    @field_validator("config")
    @classmethod
    def _check_input_options(cls, config: dict[str, Any]) -> dict[str, Any]:
        DocumentsInput.model_validate(config.get("input"))
        return config

    @property
    def documents_per_s(self) -> float:
        """Documents per second of the last command."""
        return (self.counts.done - self.resumed) / max(self.seconds, 1e-9)


def manifest_schema() -> str:
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Manifest.model_json_schema()
    return json.dumps(schema, indent=2) + "\n"
