"""Set the Prometheus metrics of a training from its records. Their names are in pipeline/monitoring/metrics.py."""

from __future__ import annotations

from typing import Any

from ray.util.metrics import Gauge

from pipeline.monitoring import metrics
from pipeline.monitoring.metrics import GaugeRefresher, increment

_GAUGES: dict[str, tuple[Gauge, dict[str, str], float]] = {
    "step": (metrics.STEP, {}, 1),
    "epoch": (metrics.EPOCH, {}, 1),
    "workers": (metrics.WORKERS, {}, 1),
    "loss": (metrics.LOSS, {"split": "train"}, 1),
    "dev_loss": (metrics.LOSS, {"split": "dev"}, 1),
    "learning_rate": (metrics.LEARNING_RATE, {}, 1),
    "gradient_norm": (metrics.GRADIENT_NORM, {}, 1),
    "wait_share": (metrics.WAIT_SHARE, {}, 1),
    "rouge1": (metrics.ROUGE, {"variant": "1"}, 100),
    "rouge2": (metrics.ROUGE, {"variant": "2"}, 100),
    "rougeL": (metrics.ROUGE, {"variant": "L"}, 100),
    "exact_match": (metrics.EXACT_MATCH, {}, 100),
}
"""Gauge, tags and divisor of each figure of a record."""


class TrainingMetrics(GaugeRefresher):
    """Metrics of a training, refreshed while the block runs.

    Args:
        name: Value of the tag ``name`` (``--watch.name``).
    """

    def __init__(self, name: str) -> None:
        super().__init__()
        metrics.set_job_name(name)
        self._tokens = 0

    def add(self, record: dict[str, Any]) -> None:
        """Update the metrics from a record."""
        if record["kind"] == "skipped":  # Ray is not connected yet
            return
        if record["kind"] == "start":
            self._tokens = 0
            increment(metrics.TRAINING_STARTS, 1)
        if record["kind"] == "fault":
            increment(metrics.ROLLBACKS, 1)
        tokens = record.get("tokens", 0)  # the record of a validation may arrive after those of later steps
        increment(metrics.TRAINING_TOKENS, tokens - self._tokens)
        self._tokens = max(self._tokens, tokens)
        for name, (gauge, tags, divisor) in _GAUGES.items():
            if record.get(name) is not None:
                self.set(gauge, record[name] / divisor, **tags)
