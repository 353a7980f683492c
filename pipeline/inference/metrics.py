"""A run's metrics for Prometheus, from the records of its windows."""

from __future__ import annotations

import time

from pipeline.inference.plan import Plan
from pipeline.monitoring import metrics
from pipeline.monitoring.metrics import GaugeRefresher, increment
from pipeline.runs.manifest import Counts, WindowRecord
from pipeline.runs.progress import RunProgress

_MODEL_CHARS = 12


class RunMetrics(GaugeRefresher):
    """Reports a run while its block runs.

    Actors are numbered in the order of their first windows, so that all runs share the same few label values.
    """

    def __init__(self) -> None:
        super().__init__()
        self._actor_numbers: dict[str, int] = {}

    def begin(self, plan: Plan) -> None:
        """Report the start of a run, once Ray is connected."""
        metrics.set_job_name(plan.config.watch.name)
        now = time.time()
        self.set(metrics.RUN, 1, run=plan.run_id, model=plan.model_fingerprint[:_MODEL_CHARS])
        self.set(metrics.RUN_ACTIVE, 1)
        self.set(metrics.RUN_STARTED, now)
        self.set(metrics.LAST_COMMIT, now)
        self.set(metrics.RUN_DOCUMENTS, plan.input.rows)
        self.set(metrics.RUN_SEEN, 0)
        self.set(metrics.RUN_ACTORS, 0)

    def resume_from(self, progress: RunProgress) -> None:
        self.set(metrics.RUN_SEEN, progress.processed)

    def add(self, window: WindowRecord, progress: RunProgress) -> None:
        """Report that another window is written, and the progress with it."""
        for outcome, documents in Counts().with_window(window).outcomes.items():
            increment(metrics.DOCUMENTS, documents, outcome=outcome)
        for reason, documents in window.rejected.items():
            increment(metrics.REJECTED_DOCUMENTS, documents, reason=reason)
        increment(metrics.SUMMARIZED_TOKENS, window.source_tokens)
        increment(metrics.TARGET_TOKENS, window.summary_tokens)
        increment(metrics.READ_TOKENS, window.stats.read_tokens, kind="token")
        increment(metrics.READ_TOKENS, window.timings.padding, kind="padding")
        if window.documents:
            self._add_timings(window)
        self.set(metrics.LAST_COMMIT, time.time())
        self.set(metrics.RUN_SEEN, progress.processed)
        self.set(metrics.RUN_ACTORS, progress.actors)

    def _add_timings(self, window: WindowRecord) -> None:
        actor = str(self._actor_numbers.setdefault(window.actor, len(self._actor_numbers) + 1))
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
        self.set(metrics.RUN_ACTIVE, 0)
