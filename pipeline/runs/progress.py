"""Report the progress of a run: to its driver, and to everyone else in a file.

    runs/<run_id>/progress.json    rewritten every few seconds while the driver of the run is alive

The driver calls ``ProgressWriter.update`` after each window.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Literal

from pydantic import AwareDatetime, ConfigDict, Field, ValidationError

from pipeline.io.location import Location
from pipeline.runs.layout import PROGRESS, run_folder
from pipeline.runs.manifest import Counts
from pipeline.runs.stored import Stored

WRITE_EVERY_S = 5.0

RECENT_S = 60.0
"""Period of the recent rate."""

SAMPLE_EVERY_S = 1.0

Phase = Literal["starting", "running", "finished", "stopped"]


class RunProgress(Stored):
    """``runs/<run_id>/progress.json``.

    Attributes:
        at: When the driver wrote this.
        phase: "starting" until the first window is written; "finished" or "stopped" once the driver has ended.
        documents: Documents in the input.
        resumed: Documents processed by earlier commands of this run.
        seconds: Time since the first window could start.
        documents_per_s: Documents per second of this command.
        recent_documents_per_s: The same over the last minute; None until it is known.
        seconds_left: Estimate; None until it is known.
        actors: Actors that have decoded a window.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str
    at: AwareDatetime
    phase: Phase
    counts: Counts = Counts()
    documents: int
    resumed: int = Field(0, alias="taken_over")
    seconds: float = 0.0
    documents_per_s: float = 0.0
    recent_documents_per_s: float | None = None
    seconds_left: float | None = None
    actors: int = 0

    @property
    def processed(self) -> int:
        """Documents of the input that are summarized, rejected, skipped or unreadable."""
        return self.counts.read + self.counts.unread

    def details(self) -> str:
        """Return the speed, the time left and the rejects as text, to follow ``1,200 of 5,000``."""
        parts = []
        if self.actors:
            recent = "" if self.recent_documents_per_s is None else f" ({self.recent_documents_per_s:,.0f} in the last minute)"
            parts.append(f"{self.documents_per_s:,.0f} documents/s{recent}")
            if self.seconds_left is not None:
                parts.append(f"{timedelta(seconds=round(self.seconds_left))} left")
            parts.append(f"{self.actors} actor{'s' * (self.actors != 1)}")
        return ", ".join([*parts, f"{sum(self.counts.rejected.values()):,} rejected"])


def read_progress(output: Location, run_id: str) -> RunProgress | None:
    """Read the progress of a run; None if there is none, or another version wrote it. Raises UserError if reading fails."""
    file = run_folder(output, run_id).child(PROGRESS)
    try:
        return RunProgress.model_validate_json(file.read()) if file.exists() else None
    except ValidationError:
        return None


class ProgressWriter:
    """Keeps progress.json up to date while its block runs. A failed write never stops the run."""

    def __init__(self, file: Location, run_id: str, documents: int) -> None:
        self._file = file
        self._latest = RunProgress(run_id=run_id, at=datetime.now(UTC), phase="starting", documents=documents)
        self._samples: deque[tuple[float, RunProgress]] = deque()  # of the last RECENT_S
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._write_until_stopped, daemon=True)

    def __enter__(self) -> ProgressWriter:
        self._thread.start()
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        phase = "stopped" if error_type else "finished"
        self._set(phase=phase, recent_documents_per_s=None, seconds_left=None)
        self._write()

    def resume_from(self, counts: Counts, documents: int) -> RunProgress:
        """Start from the counts, and the number of processed documents, of earlier commands of the run."""
        return self._set(counts=counts, resumed=documents)

    def update(self, counts: Counts, seconds: float, resumed: int, actors: int) -> RunProgress:
        """Record that another window is written; the arguments are fields of RunProgress."""
        time_s = time.monotonic()
        while len(self._samples) > 1 and self._samples[1][0] <= time_s - RECENT_S:
            self._samples.popleft()
        recent_rate, seconds_left = self._latest.recent_documents_per_s, self._latest.seconds_left
        if self._samples:
            since_s, previous = self._samples[0]
            period_s = max(time_s - since_s, 1e-9)
            if period_s >= RECENT_S / 2:
                recent_rate = (counts.done - previous.counts.done) / period_s
            # Skipped documents count too: they take little time, and the rest of the input may have as many.
            processed = counts.read + counts.unread
            if (rate := (processed - previous.processed) / period_s) > 0:
                seconds_left = max(0, previous.documents - processed) / rate
        progress = self._set(
            at=datetime.now(UTC),
            phase="running",
            counts=counts,
            resumed=resumed,
            seconds=seconds,
            documents_per_s=(counts.done - resumed) / max(seconds, 1e-9),
            recent_documents_per_s=recent_rate,
            seconds_left=seconds_left,
            actors=actors,
        )
        if not self._samples or time_s - self._samples[-1][0] >= SAMPLE_EVERY_S:
            self._samples.append((time_s, progress))
        return progress

    def _set(self, **fields: Any) -> RunProgress:
        self._latest = self._latest.model_copy(update=fields)
        return self._latest

    def _write_until_stopped(self) -> None:
        while True:
            self._write()
            if self._stop.wait(WRITE_EVERY_S):
                return

    def _write(self) -> None:
        progress = self._latest.model_copy(update={"at": datetime.now(UTC)})  # a current time shows that the driver is alive
        with suppress(Exception):
            self._file.write(progress.model_dump_json(indent=2).encode() + b"\n")
