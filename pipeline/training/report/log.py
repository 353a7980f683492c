"""What a training's records are written to: ``train.jsonl``, ``training.html`` and ``tensorboard/`` of its output folder.

All three are written when a checkpoint is kept; a run that goes on from it takes out what the one before it did after that.
"""

from __future__ import annotations

import json
import logging
from typing import Any

from pipeline.config.train import TrainConfig
from pipeline.errors import UserError, describe_error
from pipeline.io.location import Location, open_location
from pipeline.training.report.report import render
from pipeline.training.report.tensorboard import Events

_log = logging.getLogger(__name__)


class TrainingLog:
    """The records of all runs of a training, those of earlier ones included.

    Raises:
        UserError: the output folder cannot be read.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._folder: Location = open_location(config.output.path, "--output.path")
        self._file = self._folder.child("train.jsonl")
        lines = self._file.read().splitlines() if self._file.exists() else []
        self._records: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self._events: Events | None = None

    def add(self, record: dict[str, Any]) -> None:
        """Take a record. What cannot be written is tried again, with all that is added until then."""
        if record["kind"] == "waiting":
            return
        if record["kind"] == "skipped":  # each run tells of the same rows
            self._records = [earlier for earlier in self._records if earlier["kind"] != "skipped"]
        if record["kind"] == "start":  # of a group of workers that goes on from here, whatever the one before it went on to do
            self._records = [earlier for earlier in self._records if earlier.get("step", 0) <= record["step"]]
        self._records.append(record)
        try:
            self._add_event(record)
            if record["kind"] == "validation":
                self._write(is_finished=False)
        except (OSError, UserError) as error:
            _log.warning("%s; it is tried again at the next validation", describe_error(error))

    def finish(self) -> None:
        """Say on the page that the training has reached its end. Raises UserError if the output folder cannot be written."""
        if any(record["kind"] == "start" for record in self._records):
            self._write(is_finished=True)
        if self._events:
            self._events.close()

    def _add_event(self, record: dict[str, Any]) -> None:
        if record["kind"] == "start":
            if self._events:
                self._events.close()
            self._events = Events(record["step"])
        if self._events:
            self._events.add(record)

    def _write(self, is_finished: bool) -> None:
        self._file.write_with_retry("".join(json.dumps(record) + "\n" for record in self._records).encode())
        if self._events:
            name, content = self._events.file()
            self._folder.child("tensorboard").child(name).write_with_retry(content)
        try:
            page = render(self._config, self._records, is_finished)
        except Exception:  # a fault of the page's own does not end a training
            _log.warning("training.html could not be made", exc_info=True)
            return
        self._folder.child("training.html").write_with_retry(page.encode("utf-8", "replace"))
