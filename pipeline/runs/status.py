"""What can be told of a run from its output folder alone, whichever machine does it, or did.

The clocks of two machines differ: how long ago a driver wrote is told by this one's.
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

_ANSWERS_WITHIN_S = 6 * WRITE_EVERY_S
_AT_A_TIME = 16
_RESUME_HINT = "the same command goes on from there"


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands. progress: None where it has not said. state: what has become of it, in words."""

    run_id: str
    progress: RunProgress | None
    state: str


def run_status(output: Location, run_id: str | None) -> RunStatus:
    """Of a run; None: of the one that is being done, else of the one that was seen last.

    Raises:
        UserError: there is none, or the folder cannot be read.
    """
    begun, holder = run_ids(output), lease.current_holder(output)
    if not begun:
        raise UserError(f"no run has begun in {output.uri}; set --output.path to a folder that jobs.summarize writes")
    if run_id is None:
        run_id = holder.run_id if holder and holder.run_id in begun else _latest_run(output, begun)
    elif run_id not in begun:
        raise UserError(
            f"no run {run_id} has begun in {output.uri} (the last are {', '.join(begun[-3:])}); set --output.run_id"
        )
    progress = read_progress(output, run_id)
    sequences = {run.run_id: run.sequence for run in finished_runs(output)}
    state = (
        f"published, as number {sequences[run_id]} of the runs of its folder"
        if run_id in sequences
        else _describe_unfinished(run_id, progress, holder)
    )
    if holder and holder.run_id != run_id:
        state += f"; {holder} holds the lease on the folder"
    return RunStatus(run_id, progress, state)


def _latest_run(output: Location, begun: list[str]) -> str:
    found = zip(map_ahead(lambda run_id: read_progress(output, run_id), begun), begun, strict=True)
    never = datetime.min.replace(tzinfo=UTC)
    return max((progress.at if progress else never, run_id) for progress, run_id in found)[1]


def _describe_unfinished(run_id: str, progress: RunProgress | None, holder: lease.Holder | None) -> str:
    age_s = None if progress is None else max(0.0, (datetime.now(UTC) - progress.at).total_seconds())
    ago = "it has left no word" if age_s is None else f"its last word is {timedelta(seconds=round(age_s))} old"
    if holder and holder.run_id == run_id:
        if holder.is_here:
            return (
                f"being done by {holder}; {ago}" if holder.is_running else f"cut off: {holder} is gone; {ago}; {_RESUME_HINT}"
            )
        if age_s is not None and age_s <= _ANSWERS_WITHIN_S:
            return f"being done by {holder}; {ago}"
        return f"{holder} holds the lease and does not answer; {ago}; if it is gone, {_RESUME_HINT}"
    if progress and progress.phase == "finished":
        return "not published: more of it was rejected than --input.max_reject_share allows; its manifest has the counts"
    return f"{'stopped' if progress and progress.phase == 'stopped' else 'cut off'}; {ago}; {_RESUME_HINT}"
