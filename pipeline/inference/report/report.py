"""``runs/<run_id>/report.html``: what a person looks at in the morning.

    manifest, digest ── findings.py ── plots.py ── report.html.jinja ── one page

Matplotlib is imported once there is a report to make, at a run's end: a job starts sooner without.
"""

from __future__ import annotations

import html
import logging

from pydantic import ValidationError

from pipeline.errors import UserError, describe_error
from pipeline.inference.report.warnings import PreviousRun, compare_stats, run_warnings
from pipeline.io.location import Location
from pipeline.pages.page import flat, render_page
from pipeline.runs.layout import REPORT, run_folder
from pipeline.runs.manifest import Manifest
from pipeline.runs.publish import finished_runs
from pipeline.runs.stats import RunStats

_LOOKED_BACK, _SHOWN_FILES = 5, 20


_log = logging.getLogger(__name__)


def write_report(output: Location, folder: Location, manifest: Manifest, stats: RunStats, publishable: bool) -> None:
    """Write the report of a run that is about to be published, or, with too many rejects, is not.

    A fault of the report's own does not keep a night's work from being published: then the page, or where that cannot be
    written the log, says what it was.
    """
    before = previous_run(output, manifest.run_id)
    try:
        page = render(manifest, stats, before, publishable)
    except Exception as error:
        _log.warning("run %s: the report could not be made", manifest.run_id, exc_info=True)
        page = error_page(manifest.run_id, error)
    try:
        folder.child(REPORT).write_with_retry(page.encode("utf-8", "replace"))
    except UserError as error:
        _log.warning("run %s: the report could not be written: %s", manifest.run_id, error)


def previous_run(output: Location, run_id: str) -> PreviousRun | None:
    """The last published run but this one that summarized any document, of the last five; None if there is none."""
    for run in [run for run in reversed(finished_runs(output)) if run.run_id != run_id][:_LOOKED_BACK]:
        try:
            before = PreviousRun.model_validate_json(run_folder(output, run.run_id).child("manifest.json").read())
        except (UserError, ValidationError) as error:
            _log.warning("run %s: the manifest of run %s is not compared with: %s", run_id, run.run_id, describe_error(error))
            continue
        if before.stats.documents:
            return before
    return None


def error_page(run_id: str, error: Exception) -> str:
    """The page that stands for a report that could not be made."""
    what = html.escape(f"The report of run {run_id} could not be made: {type(error).__name__}: {describe_error(error)}")
    return f"<!doctype html><meta charset=utf-8><title>No report</title><p>{what}</p><p>The manifest has the figures.</p>\n"


def render(manifest: Manifest, stats: RunStats, before: PreviousRun | None, publishable: bool) -> str:
    """The page. before: the run to compare with. publishable: not too many were rejected."""
    from pipeline.inference.report import plots

    counts, decoding = manifest.counts, manifest.decoding
    drawn = {
        "throughput": plots.throughput(stats.throughput),
        "sources": plots.lengths(stats.sources, decoding["max_source_tokens"], "sources"),
        "summaries": plots.lengths(stats.summaries, decoding["max_target_tokens"], "summaries"),
    }
    found = run_warnings(manifest, stats.unscored, before, publishable)
    decoded = counts.done - manifest.resumed
    return render_page(
        "inference/report/report.html.jinja",
        drawn,
        {"measured": _measured, "changed": _changed},
        run=manifest,
        counts=counts,
        rejected=sum(counts.rejected.values()),
        skipped=sum(counts.skipped.values()),
        rate=decoded / manifest.seconds if decoded and manifest.seconds > 0 else None,
        stats=stats,
        findings=found,
        worst="bad" if any(f.level == "bad" for f in found) else "warn" if any(f.level == "warn" for f in found) else "good",
        publishable=publishable,
        before=before,
        measures=compare_stats(manifest.stats, before.stats if before else None),
        rejects=sorted(counts.rejected.items(), key=lambda item: -item[1]),
        unread=list(manifest.unread.items())[:_SHOWN_FILES],
        input_bytes=sum(file.bytes for file in manifest.input_files),
        output_bytes=sum(file.bytes for file in manifest.output_files),
        options=flat(manifest.config),
        decoding=flat(decoding),
    )


def _measured(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    return {"share": f"{value:.1%}", "tokens": f"{value:,.1f}", "nats": f"{value:.3f}"}[unit]


def _changed(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    return {"share": f"{100 * value:+.1f} points", "tokens": f"{value:+.1%}", "nats": f"{value:+.3f}"}[unit]
