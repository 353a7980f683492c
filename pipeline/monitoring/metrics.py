"""What a job tells Prometheus while it runs, through Ray; how it ended is outcome.py's business.

All names are here, with their units and tags: docs/monitoring.md says the same for people, deploy/grafana shows them. Ray puts
``ray_`` before each, and the node and process it came from beside the tags. What is told before Ray is joined is lost.

The driver alone tells, from the records that reach it: of a window once it is committed, of a
training as its workers report.
A task that was killed and done again leaves one record, and so counts once.
"""

from __future__ import annotations

import threading
from types import TracebackType
from typing import Self

from ray.util.metrics import Counter, Gauge, Histogram, Metric

_REFRESH_S = 1.0
_TAGS = ("name",)
_SECONDS = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0]

# Of jobs.summarize. Ray works out a histogram's sum from its buckets, which is off by much: seconds are counted beside it.
DOCUMENTS = Counter("nightshift_documents_total", "Documents dealt with, by what became of them.", (*_TAGS, "outcome"))
REJECTS = Counter("nightshift_rejects_total", "Documents rejected, by reason.", (*_TAGS, "reason"))
WINDOWS = Counter("nightshift_windows_total", "Windows committed.", _TAGS)
SOURCE_TOKENS = Counter("nightshift_source_tokens_total", "Subwords of the documents summarized, of their whole length.", _TAGS)
TARGET_TOKENS = Counter("nightshift_target_tokens_total", "Subwords of their summaries.", _TAGS)
READ_TOKENS = Counter(
    "nightshift_read_tokens_total", "Source positions that the model computed, by kind: token or padding.", (*_TAGS, "kind")
)
STAGE_SECONDS = Counter(
    "nightshift_stage_seconds_total",
    "Seconds that windows took, by stage, and by the number of the actor that decoded them.",
    (*_TAGS, "stage", "actor"),
)
DECODE_SECONDS = Histogram("nightshift_window_decode_seconds", "Seconds to decode a window.", _SECONDS, _TAGS)
ACTOR_PEAK = Gauge("nightshift_actor_peak_bytes", "Most memory that an actor has held.", (*_TAGS, "actor"))
RUN = Gauge("nightshift_run_info", "1, with the run's id and the begin of its model's fingerprint.", (*_TAGS, "run", "model"))
RUN_ACTIVE = Gauge("nightshift_run_active", "1 while windows are to come, then 0.", _TAGS)
RUN_STARTED = Gauge("nightshift_run_start_timestamp_seconds", "When the run's driver joined Ray.", _TAGS)
LAST_COMMIT = Gauge("nightshift_commit_timestamp_seconds", "When a window was last committed, at first the start.", _TAGS)
RUN_DOCUMENTS = Gauge("nightshift_run_documents", "Documents in the store.", _TAGS)
RUN_SEEN = Gauge("nightshift_run_seen_documents", "Of them, those dealt with, by earlier commands of the run too.", _TAGS)
RUN_ACTORS = Gauge("nightshift_run_actors", "Actors that have decoded a window.", _TAGS)

# Of jobs.train.
TRAINING_TOKENS = Counter("nightshift_training_tokens_total", "Source and target subwords learnt from, by all workers.", _TAGS)
TRAINING_STARTS = Counter("nightshift_training_starts_total", "Groups of workers started: 1, and 1 for each restart.", _TAGS)
ROLLBACKS = Counter("nightshift_training_rollbacks_total", "Rollbacks to the last checkpoint.", _TAGS)
WORKERS = Gauge("nightshift_training_workers", "DDP workers.", _TAGS)
STEP = Gauge("nightshift_training_step", "Optimizer steps, of the training as a whole.", _TAGS)
EPOCH = Gauge("nightshift_training_epoch", "Passes over the training pairs, of the training as a whole.", _TAGS)
LOSS = Gauge("nightshift_training_loss_nats", "Mean loss of a target token, by split: train or dev.", (*_TAGS, "split"))
LEARNING_RATE = Gauge("nightshift_training_learning_rate", "Of the last step.", _TAGS)
GRADIENT_NORM = Gauge("nightshift_training_gradient_norm", "Of the last step, before clipping.", _TAGS)
WAIT_SHARE = Gauge("nightshift_training_wait_ratio", "Share of the time in which the first worker waited for pairs.", _TAGS)
ROUGE = Gauge("nightshift_training_rouge_ratio", "F1 of the last validation, by variant: 1, 2 or L.", (*_TAGS, "variant"))
EXACT_MATCH = Gauge("nightshift_training_exact_match_ratio", "Of the last validation.", _TAGS)

METRICS: tuple[Metric, ...] = tuple(value for value in list(globals().values()) if isinstance(value, Metric))


def set_job_name(name: str) -> None:
    """Tell what follows under this name: ``--watch.name``."""
    for metric in METRICS:
        metric.set_default_tags({"name": name})


def increment(counter: Counter, amount: float, **tags: str) -> None:
    """Add to a counter, if there is anything to add."""
    if amount > 0:
        counter.inc(amount, tags)


class GaugeRefresher:
    """Gauges as they stand, told anew every second while the block runs: Ray forgets one that is not told for some seconds.

    Without that, a run that commits nothing would be one that says nothing.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[Gauge, tuple[tuple[str, str], ...]], float] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._tell_until_ended, daemon=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def set(self, gauge: Gauge, value: float, **tags: str) -> None:
        """From the first of these on Ray must be joined."""
        gauge.set(value, tags)
        self._values[gauge, tuple(tags.items())] = value
        if self._thread.ident is None:
            self._thread.start()

    def _tell_until_ended(self) -> None:
        while not self._ended.wait(_REFRESH_S):
            for (gauge, tags), value in list(self._values.items()):
                gauge.set(value, dict(tags))
