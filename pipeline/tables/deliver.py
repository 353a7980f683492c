"""From an output folder to a table: the latest summary of each document, once, whatever is killed and whoever else delivers.

A table remembers up to which run it has been brought (store.Mark), in the same commit as the rows. A delivery brings what came
since, up to a run, and nothing where that run is not later. So it does not matter how often a run is delivered, nor in which
order runs are: a run that was left out comes with the next one, and none takes a later one's place.
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
    """Up to which run the table is brought, and up to which it was before; had_rows: whether there was anything to bring."""

    run_id: str
    before: str | None
    had_rows: bool


def deliver(config: DeliverConfig) -> Delivered:
    """Bring a table up to a run.

    Raises:
        UserError: no such run is published; the store has no such table, or columns that do not fit; it cannot be reached; or
            what was delivered there before is of another output folder.
        Stopped: others kept changing the table meanwhile.
    """
    output = open_location(config.input.path, "--input.path")
    folder = output.uri if "://" in output.uri else output.path  # a task may read it, which starts from elsewhere
    runs = finished_runs(output)
    run = _asked_for(runs, config)
    for _ in _CONFLICT:
        with open_sink(config.output) as sink:
            before = _last_delivered(sink, runs, config.output)
            if sink.sequence >= run.sequence:
                return Delivered(before or "", before, had_rows=False)
            after = 0 if sink.keeps_all else sink.sequence
            summaries = Summaries(folder, after, run.sequence, tuple(config.input.columns))
            if summaries.is_empty:  # the mark stays where it is: what comes later is brought with the next run
                return Delivered(run.run_id, before, had_rows=False)
            if sink.deliver(summaries, Watermark.of(run)):
                return Delivered(run.run_id, before, had_rows=True)
    raise Stopped(f"others kept changing {config.output.table} meanwhile; deliver again when they are done")


def _asked_for(runs: Sequence[FinishedRun], config: DeliverConfig) -> FinishedRun:
    found = [run for run in runs if config.input.run_id in (None, run.run_id)]
    if not found:
        which = f"run {config.input.run_id} is not" if config.input.run_id else "no run is"
        raise UserError(f"{which} finished in {config.input.path}; set --input.path to a folder that jobs.summarize wrote")
    return found[-1]


def _last_delivered(sink: Sink, runs: Sequence[FinishedRun], output: DeliverOutput) -> str | None:
    """The run that the table was last brought up to. It must be of this folder: numbers of another one say nothing here."""
    if not sink.sequence:
        return None
    for run in runs:
        if run.sequence == sink.sequence and sink.remembers(Watermark.of(run)):
            return run.run_id
    told = f"{output.table} was last brought up to run number {sink.sequence} of another output folder than --input.path; "
    if sink.keeps_all:
        raise UserError(f"{told}it has all summaries of one alone: set another --output.table")
    raise UserError(f"{told}if both belong there, give this one another --output.name than {output.name!r}")
