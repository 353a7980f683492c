"""What a run did, as a record per window and a manifest of the whole run.

Pure data: what is counted and how counts add up. Who computes and where files lie is not known here.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, Field, NonNegativeInt, field_validator

from pipeline.config.summarize import DocumentsInput
from pipeline.data.rejects import RejectReason
from pipeline.runs.stats import RunStats, mean_nats
from pipeline.runs.stored import Stored
from pipeline.runs.timings import StageTimings


class OutputFile(BaseModel):
    """A Parquet file that a run wrote. path: within the output folder."""

    path: Annotated[str, Field(pattern=r"^(summaries|rejects)/run=[^/]+/[^/]+\.parquet$")]
    rows: NonNegativeInt
    bytes: NonNegativeInt
    sha256: str


class UnreadRows(BaseModel):
    """Rows of a file that could not be read, and why. rows: None where not even their number is known."""

    rows: NonNegativeInt | None
    error: str

    def __add__(self, more: UnreadRows) -> UnreadRows:
        return UnreadRows(rows=(self.rows or 0) + (more.rows or 0), error=more.error)


Number = Annotated[int, Field(ge=0, lt=1 << 31)]


class WindowRecord(Stored):
    """What became of one window of documents.

    unit, number: its name. last: of its unit's windows. actor: the one that decoded it, by Ray's id. documents: summarized and
    rejected ones. skipped, unread: of the unit, up to its last window, which alone has them; documents that were done before,
    by what was done, and rows that could not be read, by file.
    """

    split: Number = Field(alias="unit")
    number: Number
    last: bool
    actor: str
    documents: int
    skipped: dict[str, int]
    unread: dict[str, UnreadRows]
    rejected: dict[str, int]
    truncated: int
    reached_length_limit: int
    source_tokens: int
    summary_tokens: int
    timings: StageTimings = Field(alias="effort")
    files: list[OutputFile]
    stats: RunStats = Field(alias="digest")


class Counts(BaseModel):
    """Documents and tokens of a run. read = skipped + summarized + rejected, each the sum of its kinds.

    skipped: documents that an earlier run did, and that are as they were: "summarized" or "rejected" then. unread: rows of
    files that could not be read.
    """

    read: int = 0
    unread: int = 0
    skipped: dict[str, int] = {}
    summarized: int = 0
    rejected: dict[str, int] = {}
    truncated: int = 0
    reached_length_limit: int = 0
    source_tokens: int = 0
    summary_tokens: int = 0

    def with_window(self, window: WindowRecord) -> Counts:
        """The counts with a window's added."""
        before = self.leaving_out(window.skipped, window.unread)
        return Counts(
            read=before.read + window.documents,
            unread=before.unread,
            skipped=before.skipped,
            summarized=self.summarized + window.documents - sum(window.rejected.values()),
            rejected=dict(Counter(self.rejected) + Counter(window.rejected)),
            truncated=self.truncated + window.truncated,
            reached_length_limit=self.reached_length_limit + window.reached_length_limit,
            source_tokens=self.source_tokens + window.source_tokens,
            summary_tokens=self.summary_tokens + window.summary_tokens,
        )

    def leaving_out(self, skipped: Mapping[str, int], unread: Mapping[str, UnreadRows]) -> Counts:
        """The counts, and documents that are left out, too."""
        return self.model_copy(
            update={
                "read": self.read + sum(skipped.values()),
                "skipped": dict(Counter(self.skipped) + Counter(skipped)),
                "unread": self.unread + sum(of_file.rows or 0 for of_file in unread.values()),
            }
        )

    @property
    def outcomes(self) -> dict[str, int]:
        """Documents by what became of them."""
        return {
            "summarized": self.summarized,
            "rejected": sum(self.rejected.values()),
            "skipped": sum(self.skipped.values()),
            "unread": self.unread,
        }

    @property
    def done(self) -> int:
        """Documents that the run summarized or rejected itself."""
        return self.summarized + sum(self.rejected.values())

    @property
    def reject_share(self) -> float:
        """Rejected documents and unread rows among all, or those of what is new among what is new, whichever is more.

        Rows without an id of their own are rejected anew each night: in many nights' documents they count among all alone.
        """
        bad = sum(self.rejected.values()) + self.unread
        new = bad - self.rejected.get(RejectReason.NULL_ID, 0) - self.rejected.get(RejectReason.DUPLICATE_ID, 0)
        return max(bad / max(self.read + self.unread, 1), new / max(self.summarized + new, 1))


class StatsSummary(BaseModel):
    """What is said of a run's documents on average, by which it is compared with the next. None where there is none.

    documents: that were summarized. mean_source_tokens: of whole documents. mean_score: nats a subword. Shares, from 0 to 1:
    at_limit: of summaries that the length limit ended. truncated: of sources of which the model read a part. repeated: of
    summaries that say what another one says (estimated: digest.Repeats). empty: of summaries without a word. byte_tokens: of
    the subwords that the model read, those that are bytes of a character without a subword, or unknown.
    """

    documents: int = 0
    mean_source_tokens: float | None = None
    mean_summary_tokens: float | None = None
    mean_score: float | None = None
    at_limit: float | None = None
    truncated: float | None = None
    repeated: float | None = None
    empty: float | None = None
    byte_tokens: float | None = None

    @classmethod
    def of(cls, counts: Counts, stats: RunStats) -> StatsSummary:
        """Of a run's."""
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


class RemovedDocuments(BaseModel):
    """Documents that an earlier run did and that are not in the input any more.

    ids: the first of them, sorted, as strings; 100,000 at most are in ``runs/<run_id>/gone.parquet``, if there are any. A run
    that left files out does not look for them.
    """

    documents: int = 0
    ids: list[str] = []


class InputFile(BaseModel):
    """A Parquet file that a run read."""

    path: str
    rows: int
    bytes: int
    modified: datetime | None


class Manifest(Stored):
    """``runs/<run_id>/manifest.json``.

    taken_over: documents that an earlier command of this run did, before it was cut off. startup_s: until the first window
    could be decoded; seconds: from there on; both of the last command. actors: of it, that decoded any. limits: what bounded
    its speed, in words. reject_share: that of the counts or, in bytes, that of files that are no Parquet or have other columns,
    whichever is more. unread: files that could not be read, or not wholly, by path. ledger: how many runs had been published
    when this one began, whose documents it skipped if they were unchanged; 0 with ``--full``. digest: for the next run's report
    to compare with.
    """

    format: int = 2
    run_id: str
    started_at: AwareDatetime
    finished_at: AwareDatetime
    startup_s: float
    seconds: float
    model_fingerprint: str
    config: dict[str, Any]
    decoding: dict[str, Any]
    versions: dict[str, str]
    actors: int
    ledger: int
    counts: Counts
    reject_share: float
    resumed: int = Field(alias="taken_over")
    removed: RemovedDocuments = Field(alias="gone")
    stats: StatsSummary = Field(StatsSummary(), alias="digest")
    timings: StageTimings = Field(alias="effort")
    limits: str
    input_files: list[InputFile]
    unread: dict[str, UnreadRows]
    output_files: list[OutputFile]

    @field_validator("config")
    @classmethod
    def _is_of_a_run(cls, config: dict[str, Any]) -> dict[str, Any]:
        DocumentsInput.model_validate(config.get("input"))
        return config

    @property
    def documents_per_s(self) -> float:
        """Of the last command."""
        return (self.counts.done - self.resumed) / max(self.seconds, 1e-9)


def manifest_schema() -> str:
    """The JSON schema of manifests, as manifest.schema.json holds it."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"} | Manifest.model_json_schema()
    return json.dumps(schema, indent=2) + "\n"
