"""Where a run stands: for the screen of who started it, and in a file for everyone else.

    runs/<run_id>/progress.json    written anew every few seconds while the run's driver is alive

The driver notes each window; what it has seen of the last minute is all that is kept.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Literal

from pydantic import AwareDatetime, ConfigDict, Field, ValidationError

from pipeline.io.location import Location
from pipeline.runs.layout import PROGRESS, run_folder
from pipeline.runs.manifest import Counts
from pipeline.runs.stored import Stored

WRITE_EVERY_S = 5.0


_RECENT_S = 60.0


_SAMPLE_EVERY_S = 1.0


Phase = Literal["starting", "running", "finished", "stopped"]


class RunProgress(Stored):
    """``runs/<run_id>/progress.json``.

    at: when this was so. starting: until the first window is written; finished, stopped: the driver has ended. documents: of
    the whole store. taken_over: of those that are done, by an earlier command of this run. seconds: since the first window
    could start. documents_per_s: done by this command, over all of that time; recent_documents_per_s: over the last minute, if
    it runs long enough to tell. seconds_left: if anything can be said of it. actors: that have decoded a window.
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
    def seen(self) -> int:
        """Documents that have been dealt with, of all in the store."""
        return self.counts.read + self.counts.unread

    def details(self) -> str:
        """How fast it goes and what comes of it, in words: what comes after ``1,200 of 5,000``."""
        told = []
        if self.actors:
            recent = "" if self.recent_documents_per_s is None else f" ({self.recent_documents_per_s:,.0f} in the last minute)"
            told += [f"{self.documents_per_s:,.0f} documents/s{recent}"]
            told += [] if self.seconds_left is None else [f"{timedelta(seconds=round(self.seconds_left))} left"]
            told += [f"{self.actors} actor{'s' * (self.actors != 1)}"]
        return ", ".join([*told, f"{sum(self.counts.rejected.values()):,} rejected"])


def read_progress(output: Location, run_id: str) -> RunProgress | None:
    """What a run last said; None if it said nothing that this version understands.

    Raises:
        UserError: the file is there and cannot be read.
    """
    file = run_folder(output, run_id).child(PROGRESS)
    try:
        return RunProgress.model_validate_json(file.read()) if file.exists() else None
    except ValidationError:
        return None


class ProgressWriter:
    """Keeps a run's progress.json up to date while the block runs; where that fails, the run goes on without.

    Args:
        file: where to. documents: in the whole store.
    """

    def __init__(self, file: Location, run_id: str, documents: int) -> None:
        self._file = file
        self._last = RunProgress(run_id=run_id, at=datetime.now(UTC), phase="starting", documents=documents)
        self._recent: deque[tuple[float, RunProgress]] = deque()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._write_until_ended, daemon=True)

    def __enter__(self) -> ProgressWriter:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        ended = {"phase": "stopped" if kind else "finished", "recent_documents_per_s": None, "seconds_left": None}
        self._last = self._last.model_copy(update=ended)
        self._write()

    def take_over(self, counts: Counts, documents: int) -> RunProgress:
        """What an earlier command of the run has counted, and how many documents it did; where the run stands with that."""
        self._last = self._last.model_copy(update={"counts": counts, "taken_over": documents})
        return self._last

    def note(self, counts: Counts, seconds: float, resumed: int, actors: int) -> RunProgress:
        """One more window is written; where the run stands now. The arguments are those of Progress."""
        now = time.monotonic()
        at = self._last.model_copy(
            update={
                "at": datetime.now(UTC),
                "phase": "running",
                "counts": counts,
                "taken_over": resumed,
                "seconds": seconds,
                "documents_per_s": (counts.done - resumed) / max(seconds, 1e-9),
                "actors": actors,
            }
        )
        while len(self._recent) > 1 and self._recent[1][0] <= now - _RECENT_S:
            self._recent.popleft()
        if self._recent:
            since, before = self._recent[0]
            took = max(now - since, 1e-9)
            if took >= _RECENT_S / 2:
                at = at.model_copy(update={"recent_documents_per_s": (counts.done - before.counts.done) / took})
            # By all that are dealt with: of those that were done before, which take no time, more will come.
            if (rate := (at.seen - before.seen) / took) > 0:
                at = at.model_copy(update={"seconds_left": max(0, at.documents - at.seen) / rate})
        if not self._recent or now - self._recent[-1][0] >= _SAMPLE_EVERY_S:
            self._recent.append((now, at))
        self._last = at
        return at

    def _write_until_ended(self) -> None:
        while True:
            self._write()
            if self._ended.wait(WRITE_EVERY_S):
                return

    def _write(self) -> None:
        """As of now, for that the driver is alive is part of what it says."""
        content = self._last.model_copy(update={"at": datetime.now(UTC)}).model_dump_json(indent=2).encode() + b"\n"
        with suppress(Exception):  # whatever a storage fails with, no run ends by that nobody can watch it
            self._file.write(content)
