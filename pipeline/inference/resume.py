"""Resume the windows that an interrupted command has written, and compare the files of a run with its records at the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pipeline.data.documents import list_files
from pipeline.data.splits import Split
from pipeline.errors import Stopped
from pipeline.inference.plan import Plan
from pipeline.inference.totals import RunTotals
from pipeline.io.location import PARTIAL_SUFFIX, Location
from pipeline.runs import ledger
from pipeline.runs.layout import (
    DATA_FOLDERS,
    LEDGER,
    MANIFEST,
    REMOVED,
    REPORT,
    SORTED_COPY,
    UNREADABLE,
    data_files,
    parts_path,
)
from pipeline.runs.manifest import OutputFile

RESUME_HINT = "run the same command again to resume"


def start_over(plan: Plan) -> None:
    """Remove what an earlier command of the run left, and write the plan."""
    for folder in (*DATA_FOLDERS, LEDGER):
        plan.output.child(parts_path(folder, plan.run_id)).remove_folder()
    for name in (MANIFEST, REPORT, REMOVED):
        plan.folder.child(name).remove()
    for name in (UNREADABLE, SORTED_COPY):
        plan.folder.child(name).remove_folder()
    plan.write()


def resume_windows(plan: Plan, splits: Sequence[Split], totals: RunTotals) -> Sequence[Split]:
    """Add the windows that are already written to the totals, and return the splits that have others."""
    sizes = {path: file.size for path, file in data_files(plan.output, plan.run_id).items()}
    done: dict[int, set[int]] = {}
    last: dict[int, int] = {}
    for window in ledger.window_records(plan.output, plan.run_id):
        if all(sizes.get(file.path) == file.bytes for file in window.files):
            totals.add_resumed(window)
            done.setdefault(window.split, set()).add(window.number)
            if window.last:
                last[window.split] = window.number
    return [
        replace(split, done=tuple(sorted(done.get(split.number, ()))))
        for split in splits
        if split.number not in last or len(done[split.number]) <= last[split.number]
    ]


def check_input(plan: Plan, totals: RunTotals) -> None:
    """Raise Stopped if input files have changed, or documents are missing from the totals. New files are no change."""
    current = set(list_files(plan.input.root))
    if changed := [file.file.path for file in plan.input.files if file.file not in current]:
        raise Stopped(
            f"{len(changed)} input files have changed since the run started, {changed[0]} among them; run the same command "
            "again to start over"
        )
    processed = totals.counts.read + totals.counts.unread
    if processed != plan.input.rows:
        raise Stopped(
            f"{processed} documents of {plan.input.root.uri} were processed, but it had {plan.input.rows} at the start; the "
            "run is not finished: start a new one with --output.run_id"
        )


def reconcile(plan: Plan, recorded: Sequence[OutputFile]) -> None:
    """Remove files that a crash has left and no record names. Raises Stopped if a recorded one is missing or has changed."""
    written = data_files(plan.output, plan.run_id)
    if missing := [file.path for file in recorded if file.path not in written or written[file.path].size != file.bytes]:
        raise Stopped(
            f"{len(missing)} files that the run wrote to {plan.output.uri} are missing or have changed, {min(missing)} among "
            f"them; check that all nodes share this folder and that no other run {plan.run_id} writes there, then "
            f"{RESUME_HINT}"
        )
    for path in written.keys() - {file.path for file in recorded}:
        plan.output.child(path).remove()
    remove_partial_files(plan.output.child(parts_path(LEDGER, plan.run_id)))


def remove_partial_files(folder: Location) -> None:
    """Remove files that were being written to a folder when a driver was killed."""
    for name in folder.names():
        if name.endswith(PARTIAL_SUFFIX):
            folder.child(name).remove()
