"""What lies in a run's folders: taken over from a command that was cut off, and held to the records at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from pipeline.data.documents import list_files
from pipeline.data.splits import Split
from pipeline.errors import Stopped
from pipeline.inference.plan import Plan
from pipeline.inference.totals import RunTotals
from pipeline.io.location import PARTIAL_SUFFIX, Location, StoredFile
from pipeline.runs import ledger
from pipeline.runs.layout import DATA_FOLDERS, LEDGER, parts_path
from pipeline.runs.manifest import OutputFile

RESUME_HINT = "the same command goes on from here"


def resume_windows(plan: Plan, units: Sequence[Split], tally: RunTotals) -> Sequence[Split]:
    """Count the windows that are written, and leave them out of the units; those of which nothing is left are left out too."""
    sizes = {path: file.size for path, file in _written_files(plan).items()}
    done: dict[int, set[int]] = {}
    ends: dict[int, int] = {}
    for window in ledger.window_records(plan.output, plan.run_id):
        if all(sizes.get(file.path) == file.bytes for file in window.files):
            tally.take_over(window)
            done.setdefault(window.split, set()).add(window.number)
            if window.last:
                ends[window.split] = window.number
    return [
        replace(split, done=tuple(sorted(done.get(split.number, ()))))
        for split in units
        if split.number not in ends or len(done[split.number]) <= ends[split.number]
    ]


def has_no_window(plan: Plan) -> bool:
    """Whether no window of the run is written yet: it may still be cut otherwise."""
    return not ledger.has_records(plan.output, plan.run_id)


def check_input(plan: Plan, tally: RunTotals) -> None:
    """Raises Stopped if the input has changed, or not all of it came through. New files are the next run's."""
    unchanged = set(list_files(plan.store.root))
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


def reconcile(plan: Plan, recorded: Sequence[OutputFile]) -> None:
    """Remove the run's files that no record names: what a crash cut off. Stop if one that a record names is not there so."""
    found = _written_files(plan)
    if missing := [file.path for file in recorded if file.path not in found or found[file.path].size != file.bytes]:
        raise Stopped(
            f"{len(missing)} files are not in {plan.output.uri} as they were written, {min(missing)} among them: "
            f"is it a folder that all nodes share, and did no other run {plan.run_id} write there? {RESUME_HINT}"
        )
    for path in found.keys() - {file.path for file in recorded}:
        plan.output.child(path).remove()
    remove_partial_files(plan.output.child(parts_path(LEDGER, plan.run_id)))


def remove_partial_files(folder: Location) -> None:
    """Remove what is left in a folder of files that were being written when a driver was killed."""
    for name in folder.names() if folder.exists() else []:
        if name.endswith(PARTIAL_SUFFIX):
            folder.child(name).remove()


def _written_files(plan: Plan) -> Mapping[str, StoredFile]:
    """The files of summaries and rejects that lie in the run's folders, by path within the output."""
    found: dict[str, StoredFile] = {}
    for kind in DATA_FOLDERS:
        path = parts_path(kind, plan.run_id)
        folder = plan.output.child(path)
        if folder.exists():
            found |= {f"{path}/{file.path.rpartition('/')[2]}": file for file in folder.files()}
    return found
