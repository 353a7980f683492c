"""Metrics that a running job exports to Prometheus through Ray.

This module has the names, units and tags; docs/monitoring.md explains them, and deploy/grafana shows them. Ray adds the prefix
``ray_`` and tags for the node and process. Values set before Ray is connected are lost. How a job ended is pushed by
``pushgateway.py``.

Only the driver sets metrics, from the records that reach it: of a window after its commit, and of a training step. A task that
was killed and retried has one record, so it counts once.
"""

from __future__ import annotations

import threading
from typing import Self

from ray.util.metrics import Counter, Gauge, Histogram, Metric

_REFRESH_S = 1.0
_TAGS = ("name",)
_SECONDS = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0]

# jobs.summarize. Ray estimates the sum of a histogram from its buckets, so a separate counter has the exact seconds.
DOCUMENTS = Counter("nightshift_documents_total", "Documents processed, by outcome.", (*_TAGS, "outcome"))
REJECTED_DOCUMENTS = Counter("nightshift_rejects_total", "Documents rejected, by reason.", (*_TAGS, "reason"))
WINDOWS = Counter("nightshift_windows_total", "Windows committed.", _TAGS)
SUMMARIZED_TOKENS = Counter("nightshift_source_tokens_total", "Subwords of the summarized documents, before truncation.", _TAGS)
TARGET_TOKENS = Counter("nightshift_target_tokens_total", "Subwords of the summaries.", _TAGS)
READ_TOKENS = Counter(
    "nightshift_read_tokens_total", "Source positions that the model read, by kind: token or padding.", (*_TAGS, "kind")
)
STAGE_SECONDS = Counter(
    "nightshift_stage_seconds_total",
    "Seconds that windows took, by stage and by the number of the actor that decoded them.",
    (*_TAGS, "stage", "actor"),
)
DECODE_SECONDS = Histogram("nightshift_window_decode_seconds", "Seconds to decode a window.", _SECONDS, _TAGS)
ACTOR_PEAK = Gauge("nightshift_actor_peak_bytes", "Peak memory of an actor.", (*_TAGS, "actor"))
RUN = Gauge("nightshift_run_info", "Always 1; tags: run id and start of the model fingerprint.", (*_TAGS, "run", "model"))
RUN_ACTIVE = Gauge("nightshift_run_active", "1 while the run processes windows, then 0.", _TAGS)
RUN_STARTED = Gauge("nightshift_run_start_timestamp_seconds", "Time when the driver connected to Ray.", _TAGS)
LAST_COMMIT = Gauge("nightshift_commit_timestamp_seconds", "Time of the last commit of a window, or of the start.", _TAGS)
RUN_DOCUMENTS = Gauge("nightshift_run_documents", "Documents in the input.", _TAGS)
RUN_SEEN = Gauge("nightshift_run_seen_documents", "Documents processed, including those before the run was resumed.", _TAGS)
RUN_ACTORS = Gauge("nightshift_run_actors", "Actors that have decoded a window.", _TAGS)

# jobs.train
TRAINING_TOKENS = Counter("nightshift_training_tokens_total", "Source and target subwords trained on, by all workers.", _TAGS)
TRAINING_STARTS = Counter("nightshift_training_starts_total", "Starts of the workers: 1, plus 1 for each restart.", _TAGS)
ROLLBACKS = Counter("nightshift_training_rollbacks_total", "Rollbacks to the last checkpoint.", _TAGS)
WORKERS = Gauge("nightshift_training_workers", "DDP workers.", _TAGS)
STEP = Gauge("nightshift_training_step", "Optimizer steps since the start of the training.", _TAGS)
EPOCH = Gauge("nightshift_training_epoch", "Passes over the training pairs since the start of the training.", _TAGS)
LOSS = Gauge("nightshift_training_loss_nats", "Mean loss per target token, by split: train or dev.", (*_TAGS, "split"))
LEARNING_RATE = Gauge("nightshift_training_learning_rate", "Learning rate of the last step.", _TAGS)
GRADIENT_NORM = Gauge("nightshift_training_gradient_norm", "Gradient norm of the last step, before clipping.", _TAGS)
WAIT_SHARE = Gauge("nightshift_training_wait_ratio", "Share of time that the first worker waited for pairs.", _TAGS)
ROUGE = Gauge("nightshift_training_rouge_ratio", "ROUGE F1 of the last validation, by variant: 1, 2 or L.", (*_TAGS, "variant"))
EXACT_MATCH = Gauge("nightshift_training_exact_match_ratio", "Exact match of the last validation.", _TAGS)

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


def set_job_name(name: str) -> None:
    """Set the tag ``name`` of all metrics: the value of ``--watch.name``."""
    for metric in METRICS:
        metric.set_default_tags({"name": name})


def increment(counter: Counter, amount: float, **tags: str) -> None:
    """Add a positive amount to a counter."""
    if amount > 0:
        counter.inc(amount, tags)


class GaugeRefresher:
    """Context manager that sets its gauges again every second, since Ray drops a gauge that is not set for some seconds."""

    def __init__(self) -> None:
        self._values: dict[tuple[Gauge, tuple[tuple[str, str], ...]], float] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._refresh, daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        if self._thread.ident is not None:
            self._thread.join()

    def set(self, gauge: Gauge, value: float, **tags: str) -> None:
        """Set a gauge now and in each later second. Ray must be connected."""
        gauge.set(value, tags)
        self._values[gauge, tuple(tags.items())] = value
        if self._thread.ident is None:
            self._thread.start()

    def _refresh(self) -> None:
        while not self._stopped.wait(_REFRESH_S):
            for (gauge, tags), value in list(self._values.items()):
                gauge.set(value, dict(tags))
