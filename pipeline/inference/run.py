"""Execute one run: turn every new document of an input into a summary or a reject, exactly once.

    plan ──> check ids ──> read and tokenize ──> summarize (actors) ──> write ──> manifest, report, _SUCCESS
                           └────────────── one window at a time ────────────┘

The driver sees a record per window, never a document. The stages are in ``stages``, and graph.py connects them.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import yaml

from pipeline import cluster
from pipeline.data.splits import Split, cut_splits
from pipeline.inference import resume
from pipeline.inference.actor_pool import ActorPool, wait_for_actors
from pipeline.inference.dedup import check_ids
from pipeline.inference.failure_isolation import AttemptCounter
from pipeline.inference.graph import process_windows, read_stage
from pipeline.inference.metrics import RunMetrics
from pipeline.inference.plan import Plan
from pipeline.inference.removed import find_removed
from pipeline.inference.report.report import write_report
from pipeline.inference.stages.read import ReadWindows
from pipeline.inference.totals import RunTotals
from pipeline.runs import lease, ledger
from pipeline.runs.layout import MANIFEST, PROGRESS, RUN_CONFIG, UNREADABLE
from pipeline.runs.manifest import Manifest, RemovedDocuments, UnreadRows
from pipeline.runs.progress import ProgressWriter, RunProgress
from pipeline.runs.publish import last_sequence, publish
from pipeline.runs.samples import ExampleDocument
from pipeline.runs.unreadable_files import UnreadableFiles

_EXAMPLES = 5


@dataclass(frozen=True)
class RunResult:
    """The result of a run.

    Attributes:
        published: Whether the run is finished; False if more was rejected than ``--input.max_reject_share`` allows.
    """

    manifest: Manifest
    examples: list[ExampleDocument]
    published: bool


def execute(
    plan: Plan,
    on_progress: Callable[[RunProgress], None] = lambda _: None,
    on_phase: Callable[[str], None] = lambda _: None,
) -> RunResult:
    """Execute a plan, or resume it where an earlier command was interrupted.

    Args:
        on_progress: Called after each window.
        on_phase: Called with what the run does next, such as "loading the ledger".

    Raises:
        UserError: The output cannot be written or another driver writes it, a file cannot be read, or the cluster lacks
            resources.
        Stopped: A stage failed, or files differ from the plan and the records. The run has no _SUCCESS.
    """
    with lease.hold(plan.output, plan.run_id) as held:
        plan = plan.refreshed()
        resume.remove_partial_files(plan.folder)
        with ProgressWriter(plan.folder.child(PROGRESS), plan.run_id, plan.input.rows) as progress, RunMetrics() as metrics:
            return _Run(plan, held, progress, metrics, on_progress, on_phase).execute()


@dataclass
class _Run:
    """A run whose lease is held."""

    plan: Plan
    held: lease.Lease
    progress: ProgressWriter
    metrics: RunMetrics
    on_progress: Callable[[RunProgress], None]
    on_phase: Callable[[str], None]
    totals: RunTotals = field(default_factory=RunTotals)
    started_s: float = field(default_factory=time.monotonic)

    def execute(self) -> RunResult:
        self._start_or_resume()
        self.on_phase("starting Ray")
        pool = wait_for_actors(self.plan.config.resources)
        self.metrics.begin(self.plan)
        removed = cluster.translate_errors(
            lambda: self._process_documents(pool), f"see the log files of Ray; {resume.RESUME_HINT}"
        )
        resume.check_input(self.plan, self.totals)
        self.held.verify()
        resume.reconcile(self.plan, self.totals.files)
        return self._finish(removed)

    def _start_or_resume(self) -> None:
        plan = self.plan
        self.totals.unread = {path: UnreadRows(rows=None, error=error) for path, error in plan.spec.unread.items()}
        if not plan.resumes:
            self.held.verify()  # before files are removed
            resume.start_over(plan)
        options = plan.config.model_dump(mode="json", by_alias=True)
        plan.folder.child(RUN_CONFIG).write(yaml.safe_dump(options, sort_keys=False).encode())

    def _process_documents(self, pool: ActorPool) -> RemovedDocuments:
        """Write all windows that are not written yet; return the documents that the input has lost."""
        plan = self.plan
        self.on_phase("loading the ledger")
        done = ledger.load(plan.output, plan.finished, plan.spec.ledger)
        splits = list(cut_splits(plan.input.files, plan.spec.window_rows))
        unreadable = UnreadableFiles(plan.config.input.on_bad_file, plan.folder.child(UNREADABLE))
        has_windows = ledger.has_records(plan.output, plan.run_id)
        ids = check_ids(
            splits,
            plan.input.root.filesystem,
            plan.config.input.id_column,
            done,
            unreadable.seal() if has_windows else unreadable,
        )
        if has_windows:
            self.on_phase("reading which windows are written")
        remaining = resume.resume_windows(plan, splits, self.totals)
        self.metrics.resume_from(self.progress.resume_from(self.totals.counts, self.totals.resumed))
        attempts = AttemptCounter(uuid.uuid4().hex)
        read = replace(read_stage(plan, done), duplicates=ids.duplicates, unreadable=unreadable, attempts=attempts)
        self._process(remaining, pool, read)
        attempts.forget()
        if self.totals.unread:  # an unreadable file may contain any id
            return RemovedDocuments()
        self.on_phase("looking for removed documents")
        previous = [run for run in plan.finished if run.sequence <= plan.spec.ledger]
        return find_removed(plan.output, plan.folder, previous, ids.missing)

    def _process(self, splits: Sequence[Split], pool: ActorPool, read: ReadWindows) -> None:
        self.on_phase("loading the model and reading documents")
        # Closing stops the tasks if this fails, before another driver takes the lease.
        with closing(process_windows(self.plan, splits, pool, read)) as windows:
            for window in windows:
                self.held.check()
                totals = self.totals
                totals.add(window)
                progress = self.progress.update(totals.counts, totals.seconds, totals.resumed, len(totals.actors_s))
                self.metrics.add(window, progress)
                self.on_progress(progress)
        self.metrics.end()

    def _finish(self, removed: RemovedDocuments) -> RunResult:
        """Write manifest and report, and _SUCCESS unless too much was rejected."""
        plan, stats = self.plan, self.totals.stats
        self.on_phase("writing the manifest and the report")
        manifest = self.totals.manifest(plan, removed, self.started_s)
        content = manifest.model_dump_json(indent=2).encode() + b"\n"
        plan.folder.child(MANIFEST).write_with_retry(content)
        write_report(plan.output, manifest, stats, plan.finished)
        is_finished = manifest.reject_share <= plan.config.input.max_reject_share
        if is_finished:
            self.held.verify()
            publish(plan.output, plan.run_id, last_sequence(plan.finished) + 1, content)
        return RunResult(manifest, stats.sample.documents[:_EXAMPLES], is_finished)
