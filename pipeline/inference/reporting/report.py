"""``runs/<run_id>/report.html``: what a person looks at in the morning.

    manifest, digest ── findings.py ── plots.py ── report.html.jinja ── one page

Matplotlib is imported once there is a report to make, at a run's end: a job starts sooner without.
"""

from __future__ import annotations

import html
import logging

from pydantic import ValidationError

from pipeline.errors import UserError
from pipeline.inference.digest import Digest
from pipeline.inference.manifest import Manifest
from pipeline.inference.publication import published, run_folder
from pipeline.inference.reporting.findings import Before, findings, measures
from pipeline.pages.page import flat, render_page
from pipeline.storage import Place, in_words

REPORT = "report.html"
_LOOKED_BACK, _SHOWN_FILES = 5, 20
_log = logging.getLogger(__name__)


def write_report(output: Place, folder: Place, manifest: Manifest, digest: Digest, publishable: bool) -> None:
    """Write the report of a run that is about to be published, or, with too many rejects, is not.

    A fault of the report's own does not keep a night's work from being published: then the page, or where that cannot be
    written the log, says what it was.
    """
    before = last_published(output, manifest.run_id)
    try:
        page = render(manifest, digest, before, publishable)
    except Exception as error:
        _log.warning("run %s: the report could not be made", manifest.run_id, exc_info=True)
        page = apology(manifest.run_id, error)
    try:
        folder.child(REPORT).write_patiently(page.encode("utf-8", "replace"))
    except UserError as error:
        _log.warning("run %s: the report could not be written: %s", manifest.run_id, error)


def last_published(output: Place, run_id: str) -> Before | None:
    """The last published run but this one that summarized any document, of the last five; None if there is none."""
    for run in [run for run in reversed(published(output)) if run.run_id != run_id][:_LOOKED_BACK]:
        try:
            before = Before.model_validate_json(run_folder(output, run.run_id).child("manifest.json").read())
        except (UserError, ValidationError) as error:
            _log.warning("run %s: the manifest of run %s is not compared with: %s", run_id, run.run_id, in_words(error))
            continue
        if before.digest.documents:
            return before
    return None


def apology(run_id: str, error: Exception) -> str:
    """The page that stands for a report that could not be made."""
    what = html.escape(f"The report of run {run_id} could not be made: {type(error).__name__}: {in_words(error)}")
    return f"<!doctype html><meta charset=utf-8><title>No report</title><p>{what}</p><p>The manifest has the figures.</p>\n"


def render(manifest: Manifest, digest: Digest, before: Before | None, publishable: bool) -> str:
    """The page. before: the run to compare with. publishable: not too many were rejected."""
    from pipeline.inference.reporting import plots

    counts, decoding = manifest.counts, manifest.decoding
    drawn = {
        "throughput": plots.throughput(digest.course),
        "sources": plots.lengths(digest.sources, decoding["max_source_tokens"], "sources"),
        "summaries": plots.lengths(digest.summaries, decoding["max_target_tokens"], "summaries"),
    }
    found = findings(manifest, digest.unscored, before, publishable)
    decoded = counts.done - manifest.taken_over
    return render_page(
        "inference/reporting/report.html.jinja",
        drawn,
        {"measured": _measured, "changed": _changed},
        run=manifest,
        counts=counts,
        rejected=sum(counts.rejected.values()),
        skipped=sum(counts.skipped.values()),
        rate=decoded / manifest.seconds if decoded and manifest.seconds > 0 else None,
        digest=digest,
        findings=found,
        worst="bad" if any(f.level == "bad" for f in found) else "warn" if any(f.level == "warn" for f in found) else "good",
        publishable=publishable,
        before=before,
        measures=measures(manifest.digest, before.digest if before else None),
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
