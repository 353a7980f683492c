"""A training's metrics for Prometheus (watching.py), from its records."""

from __future__ import annotations

from typing import Any

from ray.util.metrics import Gauge

from pipeline import watching
from pipeline.watching import Standing, count

_GAUGES: dict[str, tuple[Gauge, dict[str, str], float]] = {
    "step": (watching.STEP, {}, 1),
    "epoch": (watching.EPOCH, {}, 1),
    "workers": (watching.WORKERS, {}, 1),
    "loss": (watching.LOSS, {"split": "train"}, 1),
    "dev_loss": (watching.LOSS, {"split": "dev"}, 1),
    "learning_rate": (watching.LEARNING_RATE, {}, 1),
    "gradient_norm": (watching.GRADIENT_NORM, {}, 1),
    "wait_share": (watching.WAIT_SHARE, {}, 1),
    "rouge1": (watching.ROUGE, {"variant": "1"}, 100),
    "rouge2": (watching.ROUGE, {"variant": "2"}, 100),
    "rougeL": (watching.ROUGE, {"variant": "L"}, 100),
    "exact_match": (watching.EXACT_MATCH, {}, 100),
}
"""By a figure's name in a record: its gauge and tags, and what it is divided by."""


class TrainingMetrics(Standing):
    """Tells of a training while the block runs. name: ``--watch.name``."""

    def __init__(self, name: str) -> None:
        super().__init__()
        watching.tell_as(name)
        self._tokens = 0

    def add(self, record: dict[str, Any]) -> None:
        """Take a record, as it comes to the driver."""
        if record["kind"] == "skipped":  # comes before Ray
            return
        if record["kind"] == "start":
            self._tokens = 0
            count(watching.TRAINING_STARTS, 1)
        if record["kind"] == "fault":
            count(watching.ROLLBACKS, 1)
        tokens = record.get("tokens", 0)  # a validation's record may come after those of later steps
        count(watching.TRAINING_TOKENS, tokens - self._tokens)
        self._tokens = max(self._tokens, tokens)
        for name, (gauge, tags, unit) in _GAUGES.items():
            if record.get(name) is not None:
                self.set(gauge, record[name] / unit, **tags)
