"""A run's metrics for Prometheus (metrics.py), from the records of its windows."""

from __future__ import annotations

import time

from pipeline.inference.plan import Plan
from pipeline.monitoring import metrics
from pipeline.monitoring.metrics import GaugeRefresher, increment
from pipeline.runs.manifest import Counts, WindowRecord
from pipeline.runs.progress import RunProgress

_MODEL_CHARS = 12


class RunMetrics(GaugeRefresher):
    """Tells of a run while the block runs.

    Actors are numbered in the order in which they first come, so that each night has the same few tags.
    """

    def __init__(self) -> None:
        super().__init__()
        self._numbers: dict[str, int] = {}

    def begin(self, plan: Plan) -> None:
        """Ray is joined."""
        metrics.set_job_name(plan.config.watch.name)
        now = time.time()
        self.set(metrics.RUN, 1, run=plan.run_id, model=plan.model_fingerprint[:_MODEL_CHARS])
        self.set(metrics.RUN_ACTIVE, 1)
        self.set(metrics.RUN_STARTED, now)
        self.set(metrics.LAST_COMMIT, now)
        self.set(metrics.RUN_DOCUMENTS, plan.store.rows)
        self.set(metrics.RUN_SEEN, 0)
        self.set(metrics.RUN_ACTORS, 0)

    def go_on(self, at: RunProgress) -> None:
        """Where the run stands before this command's first window."""
        self.set(metrics.RUN_SEEN, at.processed)

    def add(self, window: WindowRecord, at: RunProgress) -> None:
        """One more window is committed. at: where the run stands with it."""
        for outcome, documents in Counts().with_window(window).outcomes.items():
            increment(metrics.DOCUMENTS, documents, outcome=outcome)
        for reason, documents in window.rejected.items():
            increment(metrics.REJECTS, documents, reason=reason)
        increment(metrics.SOURCE_TOKENS, window.source_tokens)
        increment(metrics.TARGET_TOKENS, window.summary_tokens)
        increment(metrics.READ_TOKENS, window.stats.read_tokens, kind="token")
        increment(metrics.READ_TOKENS, window.timings.padding, kind="padding")
        if window.documents:
            self._add_effort(window)
        self.set(metrics.LAST_COMMIT, time.time())
        self.set(metrics.RUN_SEEN, at.processed)
        self.set(metrics.RUN_ACTORS, at.actors)

    def _add_effort(self, window: WindowRecord) -> None:
        actor = str(self._numbers.setdefault(window.actor, len(self._numbers) + 1))
        timings = window.timings
        stages = {
            "reading": timings.read_s,
            "waiting": timings.waited_s,
            "decoding": timings.decode_s,
            "unwritten": timings.unwritten_s,
            "writing": timings.write_s,
        }
        for stage, seconds in stages.items():
            increment(metrics.STAGE_SECONDS, seconds, stage=stage, actor=actor)
        increment(metrics.WINDOWS, 1)
        metrics.DECODE_SECONDS.observe(timings.decode_s)
        self.set(metrics.ACTOR_PEAK, timings.actor_bytes, actor=actor)

    def end(self) -> None:
        """No window is to come."""
        self.set(metrics.RUN_ACTIVE, 0)
