"""One run: every document of a store that is new to a summary or a reject, once.

    plan ── census ── read and tokenize, a window at a time ── summarize (actors) ── write ── manifest, _SUCCESS

What makes a window stands in windows.py, what the stages do with it in reading.py, summarizer.py and writing.py.
The driver sees a record per window, never a document.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

import ray.exceptions
import yaml

from pipeline import cluster
from pipeline.data.splits import cut_splits
from pipeline.errors import Stopped, UserError
from pipeline.inference.actor_pool import wait_for_actors
from pipeline.inference.dedup import check_ids
from pipeline.inference.failure_isolation import AttemptCounter
from pipeline.inference.graph import process_windows, read_stage
from pipeline.inference.metrics import RunMetrics
from pipeline.inference.plan import Plan, config_as_json
from pipeline.inference.removed import find_removed
from pipeline.inference.report.report import write_report
from pipeline.inference.resume import RESUME_HINT, check_input, has_no_window, reconcile, remove_partial_files, resume_windows
from pipeline.inference.totals import RunTotals
from pipeline.runs import lease, ledger
from pipeline.runs.layout import (
    CONFIG,
    DATA_FOLDERS,
    LEDGER,
    MANIFEST,
    PROGRESS,
    REMOVED,
    REPORT,
    SUCCESS,
    UNREADABLE,
    parts_path,
)
from pipeline.runs.manifest import Manifest, RemovedDocuments, UnreadRows
from pipeline.runs.progress import ProgressWriter, RunProgress
from pipeline.runs.publish import last_sequence, publish
from pipeline.runs.stats import ExampleDocument
from pipeline.runs.unreadable_files import UnreadableFiles

_EXAMPLES = 5


@dataclass(frozen=True)
class RunResult:
    """A run that came to its end. published: False if more was rejected than ``--input.max_reject_share`` allows."""

    manifest: Manifest
    examples: list[ExampleDocument]
    published: bool


def execute(plan: Plan, on_progress: Callable[[RunProgress], None]) -> RunResult:
    """Run a plan to its end; what a command that was cut off has written is taken over.

    Args:
        on_progress: called with the counts so far after each window.

    Raises:
        UserError: the output cannot be written or another driver does so, a file cannot be read, or the cluster lacks what
            was asked for.
        Stopped: a stage failed, or the files are not those that the plan and the records name. There is no _SUCCESS.
    """
    with lease.hold(plan.output, plan.run_id) as held:
        if plan.folder.child(SUCCESS).exists():
            raise UserError(f"run {plan.run_id} was finished by another driver just now")
        plan = plan.as_of_now()
        remove_partial_files(plan.folder)
        with ProgressWriter(plan.folder.child(PROGRESS), plan.run_id, plan.store.rows) as journal, RunMetrics() as metrics:
            return _execute(plan, held, journal, metrics, on_progress)


def _execute(
    plan: Plan, held: lease.Lease, journal: ProgressWriter, metrics: RunMetrics, on_progress: Callable[[RunProgress], None]
) -> RunResult:
    started = time.monotonic()
    tally = RunTotals(unread={path: UnreadRows(rows=None, error=error) for path, error in plan.spec.unread.items()})
    if not plan.begun or plan.anew:
        held.verify()  # before files are removed
        _start_over(plan)
    plan.folder.child(CONFIG).write(yaml.safe_dump(config_as_json(plan.config), sort_keys=False).encode())
    actors = wait_for_actors(plan.config.resources)
    metrics.begin(plan)
    first_window: float | None = None
    told: UserError | Stopped | None = None
    try:
        units = list(cut_splits(plan.store.files, plan.spec.window_rows))
        done = ledger.load(plan.output, plan.finished, plan.spec.ledger)
        bad_files = UnreadableFiles(plan.config.input.on_bad_file, plan.folder.child(UNREADABLE))
        id_column = plan.config.input.id_column
        census = check_ids(
            units, plan.store.root.filesystem, id_column, done, bad_files if has_no_window(plan) else bad_files.seal()
        )
        attempts = AttemptCounter(uuid.uuid4().hex)
        read = replace(read_stage(plan, done, census.repeated), bad_files=bad_files, attempts=attempts)
        left = resume_windows(plan, units, tally)
        metrics.go_on(journal.resume_from(tally.counts, tally.resumed))
        # Closed at once if this fails, or its tasks would write on when the lease is another's.
        with closing(process_windows(plan, left, actors, read, attempts)) as windows:
            for window in windows:
                held.check()
                first_window = first_window or time.monotonic() - window.timings.decode_s
                tally.add(window, time.monotonic())
                seconds = time.monotonic() - first_window
                at = journal.update(tally.counts, seconds, tally.resumed, len(tally.actors))
                metrics.add(window, at)
                on_progress(at)
        metrics.end()
        # What is in a file that was not read is not known: it may be there.
        removed = RemovedDocuments() if tally.unread else find_removed(plan.output, plan.folder, plan.previous_runs, census)
        attempts.forget()
    except ray.exceptions.RayError as error:
        told = cluster.to_user_error(error)
        if isinstance(told, Stopped):
            told = Stopped(f"{told}; the log files of Ray tell more; {RESUME_HINT}")
    if told is not None:
        # Not from the error itself, whose frames hold the actors, and these their room in the cluster.
        raise told
    check_input(plan, tally)
    held.verify()
    reconcile(plan, tally.files)
    manifest = tally.manifest(plan, removed, started, first_window or time.monotonic())
    content = manifest.model_dump_json(indent=2).encode() + b"\n"
    plan.folder.child(MANIFEST).write_with_retry(content)
    is_sound = manifest.reject_share <= plan.config.input.max_reject_share
    write_report(plan.output, plan.folder, manifest, tally.stats, is_sound)
    if is_sound:
        held.verify()
        publish(plan.output, plan.run_id, last_sequence(plan.finished) + 1, content)
    return RunResult(manifest, tally.stats.sample.documents[:_EXAMPLES], is_sound)


def _start_over(plan: Plan) -> None:
    """Write the plan, and remove what a run of this id left that cannot be used."""
    for kind in (*DATA_FOLDERS, LEDGER):
        plan.output.child(parts_path(kind, plan.run_id)).remove_folder()
    for name in (MANIFEST, REPORT, REMOVED):
        plan.folder.child(name).remove()
    plan.folder.child(UNREADABLE).remove_folder()
    plan.write()
