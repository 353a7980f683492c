"""A run's metrics for Prometheus (watching.py), from the records of its windows."""

from __future__ import annotations

import time

from pipeline import watching
from pipeline.inference.manifest import Counts, WindowRecord
from pipeline.inference.plan import Plan
from pipeline.inference.progress import Progress
from pipeline.watching import Standing, count

_MODEL_CHARS = 12


class RunMetrics(Standing):
    """Tells of a run while the block runs.

    Actors are numbered in the order in which they first come, so that each night has the same few tags.
    """

    def __init__(self) -> None:
        super().__init__()
        self._numbers: dict[str, int] = {}

    def begin(self, plan: Plan) -> None:
        """Ray is joined."""
        watching.tell_as(plan.config.watch.name)
        now = time.time()
        self.set(watching.RUN, 1, run=plan.run_id, model=plan.model_fingerprint[:_MODEL_CHARS])
        self.set(watching.RUN_ACTIVE, 1)
        self.set(watching.RUN_STARTED, now)
        self.set(watching.LAST_COMMIT, now)
        self.set(watching.RUN_DOCUMENTS, plan.store.rows)
        self.set(watching.RUN_SEEN, 0)
        self.set(watching.RUN_ACTORS, 0)

    def go_on(self, at: Progress) -> None:
        """Where the run stands before this command's first window."""
        self.set(watching.RUN_SEEN, at.seen)

    def add(self, window: WindowRecord, at: Progress) -> None:
        """One more window is committed. at: where the run stands with it."""
        for outcome, documents in Counts().with_window(window).outcomes.items():
            count(watching.DOCUMENTS, documents, outcome=outcome)
        for reason, documents in window.rejected.items():
            count(watching.REJECTS, documents, reason=reason)
        count(watching.SOURCE_TOKENS, window.source_tokens)
        count(watching.TARGET_TOKENS, window.summary_tokens)
        count(watching.READ_TOKENS, window.digest.read_tokens, kind="token")
        count(watching.READ_TOKENS, window.effort.padding, kind="padding")
        if window.documents:
            self._add_effort(window)
        self.set(watching.LAST_COMMIT, time.time())
        self.set(watching.RUN_SEEN, at.seen)
        self.set(watching.RUN_ACTORS, at.actors)

    def _add_effort(self, window: WindowRecord) -> None:
        actor = str(self._numbers.setdefault(window.actor, len(self._numbers) + 1))
        effort = window.effort
        stages = {
            "reading": effort.read_s,
            "waiting": effort.waited_s,
            "decoding": effort.decode_s,
            "unwritten": effort.unwritten_s,
            "writing": effort.write_s,
        }
        for stage, seconds in stages.items():
            count(watching.STAGE_SECONDS, seconds, stage=stage, actor=actor)
        count(watching.WINDOWS, 1)
        watching.DECODE_SECONDS.observe(effort.decode_s)
        self.set(watching.ACTOR_PEAK, effort.actor_bytes, actor=actor)

    def end(self) -> None:
        """No window is to come."""
        self.set(watching.RUN_ACTIVE, 0)
