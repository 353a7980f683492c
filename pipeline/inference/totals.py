"""What the driver keeps of a run's windows, and makes a manifest of."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pipeline.inference.plan import Plan, config_as_json
from pipeline.runs.manifest import Counts, Manifest, OutputFile, RemovedDocuments, StatsSummary, UnreadRows, WindowRecord
from pipeline.runs.stats import RunStats
from pipeline.runs.timings import StageTimings
from pipeline.version import versions


@dataclass
class RunTotals:
    """It grows with the files, not with the documents. taken_over: documents that an earlier command of the run did."""

    counts: Counts = field(default_factory=Counts)
    timings: StageTimings = field(default_factory=StageTimings)
    files: list[OutputFile] = field(default_factory=list)
    stats: RunStats = field(default_factory=RunStats)
    unread: dict[str, UnreadRows] = field(default_factory=dict)
    actors: dict[str, float] = field(default_factory=dict)
    """When each began with its first window."""
    resumed: int = 0

    def add(self, window: WindowRecord, at: float) -> None:
        """One more, that was written at this time (s)."""
        self._count(window)
        self.timings += window.timings
        if window.documents:
            self.actors.setdefault(window.actor, at - window.timings.decode_s)

    def take_over(self, window: WindowRecord) -> None:
        """One that an earlier command of the run wrote."""
        self._count(window)
        self.resumed += window.documents

    def _note(self, unread: Mapping[str, UnreadRows]) -> None:
        for path, rows in unread.items():
            before = self.unread.get(path)
            self.unread[path] = rows if before is None else before + rows

    def _count(self, window: WindowRecord) -> None:
        self.counts = self.counts.with_window(window)
        self.files += window.files
        self.stats += window.stats
        self._note(window.unread)

    def manifest(self, plan: Plan, removed: RemovedDocuments, started: float, first_window: float) -> Manifest:
        """Of a run that ends now. started: when its last command did, and first_window: its first window (s)."""
        ended = time.monotonic()
        actor_seconds = sum(ended - began for began in self.actors.values())
        left_out = plan.spec.unread_bytes / max(plan.store.bytes + plan.spec.unread_bytes, 1)
        return Manifest(
            run_id=plan.run_id,
            started_at=plan.spec.started_at,
            finished_at=datetime.now(UTC),
            startup_s=first_window - started,
            seconds=ended - first_window,
            model_fingerprint=plan.model_fingerprint,
            config=config_as_json(plan.config),
            decoding=plan.decoding.model_dump(),
            versions=versions(),
            actors=len(self.actors),
            ledger=plan.spec.ledger,
            counts=self.counts,
            reject_share=max(self.counts.reject_share, left_out),
            resumed=self.resumed,
            removed=removed,
            stats=StatsSummary.of(self.counts, self.stats),
            timings=self.timings,
            limits=self.timings.describe_limit(actor_seconds, ended - first_window, self.counts.source_tokens),
            input_files=plan.input_files,
            unread=self.unread,
            output_files=sorted(self.files, key=lambda file: file.path),
        )
