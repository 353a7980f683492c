"""Describe the state of a run from its output folder alone, on any machine.

The age of a progress record is measured with the clock of this machine, which may differ from that of the driver.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pipeline.errors import UserError
from pipeline.io.location import Location
from pipeline.io.parallel import map_ahead
from pipeline.runs import lease
from pipeline.runs.layout import run_ids
from pipeline.runs.progress import WRITE_EVERY_S, RunProgress, read_progress
from pipeline.runs.publish import finished_runs

_ALIVE_WITHIN_S = 6 * WRITE_EVERY_S
_RESUME_HINT = "resume with the same command"


@dataclass(frozen=True)
class RunStatus:
    """The state of a run, in words, and its last progress record if there is one."""

    run_id: str
    progress: RunProgress | None
    state: str


def run_status(output: Location, run_id: str | None) -> RunStatus:
    """Return the status of a run; for None, of the running one, or else of the one with the latest progress.

    Raises:
        UserError: There is no such run, or the folder cannot be read.
    """
    started, holder = run_ids(output), lease.current_holder(output)
    if not started:
        raise UserError(f"no run has started in {output.uri}; set --output.path to a folder that jobs.summarize writes")
    if run_id is None:
        run_id = holder.run_id if holder and holder.run_id in started else _latest_run(output, started)
    elif run_id not in started:
        raise UserError(
            f"run {run_id} has not started in {output.uri} (the last ones are {', '.join(started[-3:])}); set --output.run_id"
        )
    progress = read_progress(output, run_id)
    sequences = {run.run_id: run.sequence for run in finished_runs(output)}
    if run_id in sequences:
        state = f"finished, number {sequences[run_id]} of the runs in this folder"
    else:
        state = _describe_unfinished(run_id, progress, holder)
    if holder and holder.run_id != run_id:
        state += f"; {holder} holds the lease on the folder"
    return RunStatus(run_id, progress, state)


def _latest_run(output: Location, started: list[str]) -> str:
    records = zip(map_ahead(lambda run_id: read_progress(output, run_id), started), started, strict=True)
    never = datetime.min.replace(tzinfo=UTC)
    return max((progress.at if progress else never, run_id) for progress, run_id in records)[1]


def _describe_unfinished(run_id: str, progress: RunProgress | None, holder: lease.Holder | None) -> str:
    age_s = None if progress is None else max(0.0, (datetime.now(UTC) - progress.at).total_seconds())
    age = "no progress recorded" if age_s is None else f"last progress {timedelta(seconds=round(age_s))} ago"
    if holder and holder.run_id == run_id:
        if holder.is_local and not holder.is_running:
            return f"interrupted: {holder} is no longer running; {age}; {_RESUME_HINT}"
        if holder.is_local or (age_s is not None and age_s <= _ALIVE_WITHIN_S):
            return f"running: {holder}; {age}"
        return f"{holder} holds the lease but does not respond; {age}; if it has ended, {_RESUME_HINT}"
    if progress and progress.phase == "finished":
        return "not published: more documents were rejected than --input.max_reject_share allows; see its manifest"
    return f"{'stopped' if progress and progress.phase == 'stopped' else 'interrupted'}; {age}; {_RESUME_HINT}"
