"""Push how a job ended to a Prometheus Pushgateway, which outlives the job and its cluster.

A file for node_exporter would not do, since the driver may run in a pod whose disk is temporary.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from types import TracebackType
from typing import Literal

from prometheus_client import CollectorRegistry, Gauge, pushadd_to_gateway

from pipeline.config.monitoring import MonitoringSection
from pipeline.errors import EXIT_OK, describe_error, exit_status

PUSH_TIMEOUT_S = 5.0
_log = logging.getLogger(__name__)

OUTCOME_METRICS = {
    "nightshift_start_timestamp_seconds": "Time when the job was last started.",
    "nightshift_end_timestamp_seconds": "Time when the job last ended, successful or not.",
    "nightshift_exit_status": "Exit status of the job when it last ended.",
    "nightshift_success_timestamp_seconds": "Time when the job last succeeded: it published a run or wrote a model bundle.",
    "nightshift_last_documents": "Documents of the last run that ended, by outcome.",
    "nightshift_last_documents_per_second": "Speed of the last run that ended.",
}
"""Metrics that are pushed, with the job ``nightshift_summarize`` or ``nightshift_train`` and the name of ``--watch.name``."""


@dataclass
class JobOutcome:
    """Context manager that pushes the start of a job and how it ended; a failed push only logs a warning.

    A metric that is not pushed keeps its value in the gateway, such as the time of the last success when a job fails.

    Attributes:
        succeeded: True if the job reached its goal.
        documents: number of documents by outcome.
    """

    job: Literal["summarize", "train"]
    watch: MonitoringSection
    status: int = EXIT_OK
    succeeded: bool = False
    documents: Mapping[str, int] = field(default_factory=dict)
    documents_per_s: float | None = None

    def __enter__(self) -> JobOutcome:
        self._push({"nightshift_start_timestamp_seconds": time.time()})
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.status = exit_status(error)
            self.succeeded = False
        end_s = time.time()
        values = {"nightshift_end_timestamp_seconds": end_s, "nightshift_exit_status": float(self.status)}
        if self.succeeded:
            values["nightshift_success_timestamp_seconds"] = end_s
        if self.documents_per_s is not None:
            values["nightshift_last_documents_per_second"] = self.documents_per_s
        self._push(values)

    def _push(self, values: Mapping[str, float]) -> None:
        if self.watch.pushgateway is None:
            return
        registry = CollectorRegistry()
        for name, value in values.items():
            Gauge(name, OUTCOME_METRICS[name], registry=registry).set(value)
        if self.documents:
            name = "nightshift_last_documents"
            documents = Gauge(name, OUTCOME_METRICS[name], ["outcome"], registry=registry)
            for outcome, count in self.documents.items():
                documents.labels(outcome).set(count)
        job, tags = f"nightshift_{self.job}", {"name": self.watch.name}
        try:
            pushadd_to_gateway(self.watch.pushgateway, job, registry, tags, timeout=PUSH_TIMEOUT_S)
        except (OSError, HTTPException, ValueError) as error:  # ValueError: the host name is invalid
            _log.warning("cannot push to --watch.pushgateway %s: %s", self.watch.pushgateway, describe_error(error))
