"""Write ``runs/<run_id>/report.html``, the page that people read in the morning.

    manifest, stats ──> warnings.py, plots.py ──> report.html.jinja ──> one page

Matplotlib is imported only to make a report, at the end of a run, so that a job starts faster.
"""

from __future__ import annotations

import html
import logging
from collections.abc import Sequence

from pydantic import ValidationError

from pipeline.errors import UserError, describe_error
from pipeline.inference.report.warnings import PreviousRun, compare_stats, exceeds_reject_limit, run_warnings
from pipeline.io.location import Location
from pipeline.pages.page import flat, render_page
from pipeline.runs.layout import MANIFEST, REPORT, run_folder
from pipeline.runs.manifest import Manifest
from pipeline.runs.publish import FinishedRun
from pipeline.runs.stats import RunStats

_MAX_RUNS_BACK = 5
_MAX_FILES_SHOWN = 20
_log = logging.getLogger(__name__)


def write_report(output: Location, manifest: Manifest, stats: RunStats, finished: Sequence[FinishedRun]) -> None:
    """Write the report of a run that is complete.

    An error in the report never stops the run from finishing: the page then shows the error, or the log does if even that
    page cannot be written.

    Args:
        finished: Earlier finished runs of the output, oldest first.
    """
    previous = previous_run(output, finished)
    try:
        page = render_report(manifest, stats, previous)
    except Exception as error:
        _log.warning("run %s: cannot make the report", manifest.run_id, exc_info=True)
        page = error_page(manifest.run_id, error)
    try:
        run_folder(output, manifest.run_id).child(REPORT).write_with_retry(page.encode("utf-8", "replace"))
    except UserError as error:
        _log.warning("run %s: cannot write the report: %s", manifest.run_id, error)


def previous_run(output: Location, finished: Sequence[FinishedRun]) -> PreviousRun | None:
    """Return the latest finished run that summarized any document. Looks at the last few only."""
    for run in reversed(finished[-_MAX_RUNS_BACK:]):
        try:
            previous = PreviousRun.model_validate_json(run_folder(output, run.run_id).child(MANIFEST).read())
        except (UserError, ValidationError) as error:
            _log.warning("run %s: cannot compare with this run: %s", run.run_id, describe_error(error))
            continue
        if previous.stats.documents:
            return previous
    return None


def error_page(run_id: str, error: Exception) -> str:
    """Return the page to write if rendering the report failed."""
    message = html.escape(f"Cannot make the report of run {run_id}: {type(error).__name__}: {describe_error(error)}")
    return f"<!doctype html><meta charset=utf-8><title>No report</title><p>{message}</p><p>See manifest.json instead.</p>\n"


def render_report(manifest: Manifest, stats: RunStats, previous: PreviousRun | None) -> str:
    """Render the page of a run, compared with a previous run if there is one."""
    from pipeline.inference.report import plots

    counts, decoding = manifest.counts, manifest.decoding
    svgs = {
        "throughput": plots.throughput(stats.throughput),
        "sources": plots.lengths(stats.sources, decoding["max_source_tokens"], "sources"),
        "summaries": plots.lengths(stats.summaries, decoding["max_target_tokens"], "summaries"),
    }
    warnings = run_warnings(manifest, stats.unscored, previous)
    levels = {warning.level for warning in warnings}
    decoded = counts.done - manifest.resumed
    return render_page(
        "inference/report/report.html.jinja",
        svgs,
        {"measured": _measured, "changed": _changed},
        run=manifest,
        counts=counts,
        rejected=sum(counts.rejected.values()),
        skipped=sum(counts.skipped.values()),
        rate=decoded / manifest.seconds if decoded and manifest.seconds > 0 else None,
        stats=stats,
        warnings=warnings,
        worst_level=next((level for level in ("bad", "warn") if level in levels), "good"),
        is_finished=not exceeds_reject_limit(manifest),
        previous=previous,
        measures=compare_stats(manifest.stats, previous.stats if previous else None),
        rejects=sorted(counts.rejected.items(), key=lambda item: -item[1]),
        unread=list(manifest.unread.items())[:_MAX_FILES_SHOWN],
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
