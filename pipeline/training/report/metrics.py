"""A training's metrics for Prometheus (metrics.py), from its records."""

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
"""By a figure's name in a record: its gauge and tags, and what it is divided by."""


class TrainingMetrics(GaugeRefresher):
    """Tells of a training while the block runs. name: ``--watch.name``."""

    def __init__(self, name: str) -> None:
        super().__init__()
        metrics.set_job_name(name)
        self._tokens = 0

    def add(self, record: dict[str, Any]) -> None:
        """Take a record, as it comes to the driver."""
        if record["kind"] == "skipped":  # comes before Ray
            return
        if record["kind"] == "start":
            self._tokens = 0
            increment(metrics.TRAINING_STARTS, 1)
        if record["kind"] == "fault":
            increment(metrics.ROLLBACKS, 1)
        tokens = record.get("tokens", 0)  # a validation's record may come after those of later steps
        increment(metrics.TRAINING_TOKENS, tokens - self._tokens)
        self._tokens = max(self._tokens, tokens)
        for name, (gauge, tags, unit) in _GAUGES.items():
            if record.get(name) is not None:
                self.set(gauge, record[name] / unit, **tags)
