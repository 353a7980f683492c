"""Write the records of a training to its output folder: train.jsonl, training.html and tensorboard/.

All three are written at each validation, when a checkpoint is kept. A run that resumes from a checkpoint drops the records
that an earlier run added after it.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from pipeline.errors import UserError, describe_error
from pipeline.io.location import Location, open_location
from pipeline.training.plan import TrainingPlan
from pipeline.training.report.report import render_training_page
from pipeline.training.report.tensorboard import EventFile

_log = logging.getLogger(__name__)


class TrainingLog:
    """The records of all runs of a training, earlier runs included.

    Args:
        plan: The training.

    Raises:
        UserError: The output folder cannot be read.
    """

    def __init__(self, plan: TrainingPlan) -> None:
        self._config, self._parent = plan.config, plan.parent
        self._folder: Location = open_location(plan.config.output.path, "--output.path")
        self._file = self._folder.child("train.jsonl")
        lines = self._file.read().splitlines() if self._file.exists() else []
        self._records: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self._events: EventFile | None = None

    def add(self, record: dict[str, Any]) -> None:
        """Add a record. If writing fails, the next validation writes everything again."""
        if record["kind"] == "waiting":
            return
        if record["kind"] == "skipped":  # each run reports the same rows
            self._records = [earlier for earlier in self._records if earlier["kind"] != "skipped"]
        if record["kind"] == "start":  # the workers resume at this step, so later steps no longer count
            self._records = [earlier for earlier in self._records if earlier.get("step", 0) <= record["step"]]
        self._records.append(record)
        try:
            self._add_event(record)
            if record["kind"] == "validation":
                self._write(fingerprint=None)
        except (OSError, UserError) as error:
            _log.warning("%s; trying again at the next validation", describe_error(error))

    def finish(self, fingerprint: str) -> None:
        """Mark the training as finished on the page, with the fingerprint of its bundle.

        Raises:
            UserError: The output folder cannot be written.
        """
        if any(record["kind"] == "start" for record in self._records):
            self._write(fingerprint)
        if self._events:
            self._events.close()

    def _add_event(self, record: dict[str, Any]) -> None:
        if record["kind"] == "start":
            if self._events:
                self._events.close()
            self._events = EventFile(record["step"])
        if self._events:
            self._events.add(record)

    def _write(self, fingerprint: str | None) -> None:
        self._file.write_with_retry("".join(json.dumps(record) + "\n" for record in self._records).encode())
        if self._events:
            name, content = self._events.read()
            self._folder.child("tensorboard").child(name).write_with_retry(content)
        try:
            page = render_training_page(self._config, self._records, self._parent, fingerprint)
        except Exception:  # an error in the page never stops a training
            _log.warning("cannot make training.html", exc_info=True)
            return
        self._folder.child("training.html").write_with_retry(page.encode("utf-8", "replace"))
