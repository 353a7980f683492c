"""Deliver summaries from an output folder to a table: the latest summary of each document, exactly once.

In the same commit as the rows, a table records up to which run it has been brought (base.Watermark). A delivery brings the
summaries of all runs since then, up to a given run, and nothing if the table is already past that run. So deliveries may be
killed, repeated, run at the same time, or given in any order: a run that was left out comes with the next one, and an older
summary never replaces a newer one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.config.tables import DeliverConfig, DeliverOutput
from pipeline.errors import Stopped, UserError
from pipeline.io.location import open_location
from pipeline.io.retry import Backoff
from pipeline.runs.publish import FinishedRun, finished_runs
from pipeline.tables.base import Sink, Summaries, Watermark, open_sink

_CONFLICT = Backoff(attempts=6, pause_s=0.5, jitter=True)


@dataclass(frozen=True)
class Delivered:
    """Result of a delivery.

    Attributes:
        run_id: run that the table is now at.
        previous_run_id: run that it was at before; None if this was its first delivery.
        had_rows: True if there was anything to bring.
    """

    run_id: str
    previous_run_id: str | None
    had_rows: bool


def deliver(config: DeliverConfig) -> Delivered:
    """Bring a table up to a run.

    Raises:
        UserError: there is no such run; the table cannot be reached or its columns do not fit; or its last delivery came from
            another output folder.
        Stopped: other writers kept changing the table.
    """
    output = open_location(config.input.path, "--input.path")
    folder = output.uri if "://" in output.uri else output.path  # absolute: a Ray task has another working directory
    runs = finished_runs(output)
    run = _select_run(runs, config)
    for _ in _CONFLICT:
        with open_sink(config.output) as sink:
            previous = _last_delivered(sink, runs, config.output)
            if sink.sequence >= run.sequence:
                return Delivered(previous or "", previous, had_rows=False)
            after = 0 if sink.keeps_all else sink.sequence
            summaries = Summaries(folder, after, run.sequence, tuple(config.input.columns))
            if summaries.is_empty:  # the watermark stays: a later delivery starts from the same run
                return Delivered(run.run_id, previous, had_rows=False)
            if sink.deliver(summaries, Watermark.of(run)):
                return Delivered(run.run_id, previous, had_rows=True)
    raise Stopped(f"other writers kept changing {config.output.table}; run jobs.deliver again when they have finished")


def _select_run(runs: Sequence[FinishedRun], config: DeliverConfig) -> FinishedRun:
    matches = [run for run in runs if config.input.run_id in (None, run.run_id)]
    if not matches:
        which = f"run {config.input.run_id} is not" if config.input.run_id else "no run is"
        raise UserError(f"{which} finished in {config.input.path}; set --input.path to a folder that jobs.summarize wrote")
    return matches[-1]


def _last_delivered(sink: Sink, runs: Sequence[FinishedRun], output: DeliverOutput) -> str | None:
    """Return the id of the last delivered run. Raises UserError if it is a run of another output folder."""
    if not sink.sequence:
        return None
    for run in runs:
        if run.sequence == sink.sequence and sink.is_at(Watermark.of(run)):
            return run.run_id
    message = f"{output.table} holds run number {sink.sequence} of another output folder than --input.path; "
    if sink.keeps_all:
        raise UserError(f"{message}set another --output.table: this type of table holds the summaries of one folder")
    raise UserError(f"{message}to deliver both into this table, set another --output.name than {output.name!r}")
