"""Add up the records of a run's windows, for its manifest."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pipeline.inference.plan import Plan
from pipeline.runs.manifest import Counts, Manifest, OutputFile, RemovedDocuments, StatsSummary, UnreadRows, WindowRecord
from pipeline.runs.stats import RunStats
from pipeline.runs.timings import StageTimings
from pipeline.version import versions


@dataclass
class RunTotals:
    """Sums over windows. They grow with the number of files, not of documents.

    Attributes:
        unread: Unreadable rows by path.
        resumed: Documents that earlier commands of the run processed.
        first_window_s: Time at which the first window of this command could be decoded.
        actors_s: Time at which each actor could decode its first window, by Ray id.
    """

    counts: Counts = field(default_factory=Counts)
    timings: StageTimings = field(default_factory=StageTimings)
    files: list[OutputFile] = field(default_factory=list)
    stats: RunStats = field(default_factory=RunStats)
    unread: dict[str, UnreadRows] = field(default_factory=dict)
    resumed: int = 0
    first_window_s: float | None = None
    actors_s: dict[str, float] = field(default_factory=dict)

    def add(self, window: WindowRecord) -> None:
        """Add a window that has just been written."""
        self._count(window)
        self.timings += window.timings
        decoding_since_s = time.monotonic() - window.timings.decode_s
        if self.first_window_s is None:
            self.first_window_s = decoding_since_s
        if window.documents:
            self.actors_s.setdefault(window.actor, decoding_since_s)

    def add_resumed(self, window: WindowRecord) -> None:
        """Add a window that an earlier command of the run wrote."""
        self._count(window)
        self.resumed += window.documents

    @property
    def seconds(self) -> float:
        """Time since the first window could be decoded."""
        return 0.0 if self.first_window_s is None else time.monotonic() - self.first_window_s

    def _count(self, window: WindowRecord) -> None:
        self.counts = self.counts.with_window(window)
        self.files += window.files
        self.stats += window.stats
        for path, rows in window.unread.items():
            previous = self.unread.get(path)
            self.unread[path] = rows if previous is None else previous + rows

    def manifest(self, plan: Plan, removed: RemovedDocuments, started_s: float) -> Manifest:
        """Return the manifest of a run that ends now, whose last command started at ``started_s``."""
        ended_s = time.monotonic()
        first_window_s = ended_s if self.first_window_s is None else self.first_window_s
        actor_seconds = sum(ended_s - since_s for since_s in self.actors_s.values())
        limits = self.timings.describe_limit(actor_seconds, ended_s - first_window_s, self.counts.source_tokens)
        unread_share = plan.spec.unread_bytes / max(plan.input.bytes + plan.spec.unread_bytes, 1)
        return Manifest(
            run_id=plan.run_id,
            started_at=plan.spec.started_at,
            finished_at=datetime.now(UTC),
            startup_s=first_window_s - started_s,
            seconds=ended_s - first_window_s,
            model_fingerprint=plan.model_fingerprint,
            config=plan.config.model_dump(mode="json", by_alias=True),
            decoding=plan.decoding.model_dump(),
            versions=versions(),
            actors=len(self.actors_s),
            ledger=plan.spec.ledger,
            counts=self.counts,
            reject_share=max(self.counts.reject_share, unread_share),
            resumed=self.resumed,
            removed=removed,
            stats=StatsSummary.of(self.counts, self.stats),
            timings=self.timings,
            limits=limits if self.counts.summarized else "",
            input_files=plan.input_files,
            unread=self.unread,
            output_files=sorted(self.files, key=lambda file: file.path),
        )
