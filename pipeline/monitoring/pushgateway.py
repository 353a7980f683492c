"""How a job ended, for a Prometheus Pushgateway: it outlives the job, and the cluster that was started for it.

A file for node_exporter would be as simple, but the driver runs where Ray puts it: in a pod, whose disk goes with it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from types import TracebackType

from prometheus_client import CollectorRegistry, Gauge, pushadd_to_gateway

from pipeline.config.monitoring import MonitoringSection
from pipeline.errors import describe_error, exit_status

_TIMEOUT_S = 5.0
_log = logging.getLogger(__name__)

OUTCOME_METRICS = {
    "nightshift_start_timestamp_seconds": "When the job was last started.",
    "nightshift_end_timestamp_seconds": "When it last ended, well or not.",
    "nightshift_exit_status": "Its exit status then.",
    "nightshift_success_timestamp_seconds": "When it last reached its goal: a run that is published, a bundle.",
    "nightshift_last_documents": "Documents of the last run that ended, by what became of them.",
    "nightshift_last_documents_per_second": "How fast it did them.",
}
"""What is pushed, under job="nightshift_summarize" or "nightshift_train" and the name of ``--watch.name``."""


@dataclass
class JobOutcome:
    """Tells the gateway that the block begins, and how it ended; a gateway that does not answer is warned of.

    What is not told anew stays there as it was: when a job that fails now last succeeded.

    job: "summarize" or "train". status: what the job will exit with. succeeded: it reached its goal just now. documents: by
    what became of them.
    """

    job: str
    watch: MonitoringSection
    status: int = 0
    succeeded: bool = False
    documents: Mapping[str, int] = field(default_factory=dict)
    documents_per_s: float | None = None

    def __enter__(self) -> JobOutcome:
        self._push({"nightshift_start_timestamp_seconds": time.time()})
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, frames: TracebackType | None) -> None:
        if error is not None:
            self.status = exit_status(error)
            self.succeeded = False
        now = time.time()
        figures = {"nightshift_end_timestamp_seconds": now, "nightshift_exit_status": float(self.status)}
        if self.succeeded:
            figures["nightshift_success_timestamp_seconds"] = now
        if self.documents_per_s is not None:
            figures["nightshift_last_documents_per_second"] = self.documents_per_s
        self._push(figures)

    def _push(self, figures: Mapping[str, float]) -> None:
        if self.watch.pushgateway is None:
            return
        registry = CollectorRegistry()
        for name, value in figures.items():
            Gauge(name, OUTCOME_METRICS[name], registry=registry).set(value)
        if self.documents:
            documents = Gauge(
                "nightshift_last_documents", OUTCOME_METRICS["nightshift_last_documents"], ["outcome"], registry=registry
            )
            for outcome, number in self.documents.items():
                documents.labels(outcome).set(number)
        try:
            pushadd_to_gateway(
                self.watch.pushgateway, f"nightshift_{self.job}", registry, {"name": self.watch.name}, timeout=_TIMEOUT_S
            )
        except (OSError, HTTPException, ValueError) as problem:  # ValueError: a name that no host can have
            _log.warning("cannot push to --watch.pushgateway %s: %s", self.watch.pushgateway, describe_error(problem))
