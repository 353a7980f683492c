"""What the driver keeps of a run's windows, and makes a manifest of."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

from pipeline.inference.digest import Digest
from pipeline.inference.effort import Effort
from pipeline.inference.manifest import Counts, DigestSummary, Gone, Manifest, OutputFile, UnreadRows, WindowRecord
from pipeline.inference.plan import Plan, as_json
from pipeline.versions import versions


@dataclass
class Tally:
    """It grows with the files, not with the documents. taken_over: documents that an earlier command of the run did."""

    counts: Counts = field(default_factory=Counts)
    effort: Effort = field(default_factory=Effort)
    files: list[OutputFile] = field(default_factory=list)
    digest: Digest = field(default_factory=Digest)
    unread: dict[str, UnreadRows] = field(default_factory=dict)
    actors: dict[str, float] = field(default_factory=dict)
    """When each began with its first window."""
    taken_over: int = 0

    def add(self, window: WindowRecord, at: float) -> None:
        """One more, that was written at this time (s)."""
        self._count(window)
        self.effort += window.effort
        if window.documents:
            self.actors.setdefault(window.actor, at - window.effort.decode_s)

    def take_over(self, window: WindowRecord) -> None:
        """One that an earlier command of the run wrote."""
        self._count(window)
        self.taken_over += window.documents

    def _note(self, unread: Mapping[str, UnreadRows]) -> None:
        for path, rows in unread.items():
            before = self.unread.get(path)
            self.unread[path] = rows if before is None else before + rows

    def _count(self, window: WindowRecord) -> None:
        self.counts = self.counts.with_window(window)
        self.files += window.files
        self.digest += window.digest
        self._note(window.unread)

    def manifest(self, plan: Plan, gone: Gone, started: float, first_window: float) -> Manifest:
        """Of a run that ends now. started: when its last command did, and first_window: its first window (s)."""
        ended = time.monotonic()
        actor_seconds = sum(ended - began for began in self.actors.values())
        left_out = plan.pinned.unread_bytes / max(plan.store.bytes + plan.pinned.unread_bytes, 1)
        return Manifest(
            run_id=plan.run_id,
            started_at=plan.pinned.started_at,
            finished_at=datetime.now(UTC),
            startup_s=first_window - started,
            seconds=ended - first_window,
            model_fingerprint=plan.model_fingerprint,
            config=as_json(plan.config),
            decoding=plan.decoding.model_dump(),
            versions=versions(),
            actors=len(self.actors),
            ledger=plan.pinned.ledger,
            counts=self.counts,
            reject_share=max(self.counts.reject_share, left_out),
            taken_over=self.taken_over,
            gone=gone,
            digest=DigestSummary.of(self.counts, self.digest),
            effort=self.effort,
            limits=self.effort.summed_up(actor_seconds, ended - first_window, self.counts.source_tokens),
            input_files=plan.input_files,
            unread=self.unread,
            output_files=sorted(self.files, key=lambda file: file.path),
        )
