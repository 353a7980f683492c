"""What lies in a run's folders: taken over from a command that was cut off, and held to the records at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline.errors import Stopped
from pipeline.inference import ledger
from pipeline.inference.manifest import OutputFile
from pipeline.inference.plan import Plan
from pipeline.inference.publication import KINDS
from pipeline.inference.tally import Tally
from pipeline.inference.windows import Unit
from pipeline.storage import PART, Place, StoredFile
from pipeline.text.documents import stored_files

AGAIN = "the same command goes on from here"


def take_over(plan: Plan, units: Sequence[Unit], tally: Tally) -> Sequence[Unit]:
    """Count the windows that are written, and leave them out of the units; those of which nothing is left are left out too."""
    sizes = {path: file.size for path, file in _written(plan).items()}
    done: dict[int, set[int]] = {}
    ends: dict[int, int] = {}
    for window in ledger.records(plan.output, plan.run_id):
        if all(sizes.get(file.path) == file.bytes for file in window.files):
            tally.take_over(window)
            done.setdefault(window.unit, set()).add(window.number)
            if window.last:
                ends[window.unit] = window.number
    return [
        replace(unit, done=tuple(sorted(done.get(unit.number, ()))))
        for unit in units
        if unit.number not in ends or len(done[unit.number]) <= ends[unit.number]
    ]


def nothing_is_done(plan: Plan) -> bool:
    """Whether no window of the run is written yet: it may still be cut otherwise."""
    return not ledger.has_records(plan.output, plan.run_id)


def check_input(plan: Plan, tally: Tally) -> None:
    """Raises Stopped if the input has changed, or not all of it came through. New files are the next run's."""
    unchanged = set(stored_files(plan.store.root))
    if changed := [file.file.path for file in plan.store.files if file.file not in unchanged]:
        raise Stopped(
            f"{len(changed)} files have changed since the run began, {changed[0]} among them; the same command begins it anew"
        )
    came = tally.counts.read + tally.counts.unread
    if came != plan.store.rows:
        raise Stopped(
            f"{came} documents of {plan.store.root.uri} came through where there were {plan.store.rows} at the start; "
            "nothing is published: begin another run, --output.run_id"
        )


def keep_recorded(plan: Plan, recorded: Sequence[OutputFile]) -> None:
    """Remove the run's files that no record names: what a crash cut off. Stop if one that a record names is not there so."""
    found = _written(plan)
    if missing := [file.path for file in recorded if file.path not in found or found[file.path].size != file.bytes]:
        raise Stopped(
            f"{len(missing)} files are not in {plan.output.uri} as they were written, {min(missing)} among them: "
            f"is it a folder that all nodes share, and did no other run {plan.run_id} write there? {AGAIN}"
        )
    for path in found.keys() - {file.path for file in recorded}:
        plan.output.child(path).remove()
    clear_cut_off(plan.output.child(f"ledger/run={plan.run_id}"))


def clear_cut_off(folder: Place) -> None:
    """Remove what is left in a folder of files that were being written when a driver was killed."""
    for name in folder.names() if folder.exists() else []:
        if name.endswith(PART):
            folder.child(name).remove()


def _written(plan: Plan) -> Mapping[str, StoredFile]:
    """The files of summaries and rejects that lie in the run's folders, by path within the output."""
    found: dict[str, StoredFile] = {}
    for kind in KINDS:
        folder = plan.output.child(f"{kind}/run={plan.run_id}")
        if folder.exists():
            found |= {f"{kind}/run={plan.run_id}/{file.path.rpartition('/')[2]}": file for file in folder.files()}
    return found
