"""``runs/<run_id>/report.html``: what a person looks at in the morning. One file, which loads nothing and runs nothing.

    manifest, digest ── findings.py ── plots.py ── report.html.jinja ── one page

Texts of documents are strangers': all that goes into the page is escaped, and the page's own policy forbids scripts and loads.
Jinja2 and matplotlib are imported once there is a report to make, at a run's end: a job starts sooner without.
"""

from __future__ import annotations

import html
import json
import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import resources
from typing import Any

from pydantic import ValidationError

from pipeline.errors import UserError
from pipeline.inference.digest import Digest
from pipeline.inference.manifest import Manifest
from pipeline.inference.publication import published, run_folder
from pipeline.inference.reporting.findings import Before, findings, measures
from pipeline.storage import Place, in_words

REPORT = "report.html"
_LOOKED_BACK, _SHOWN_FILES = 5, 20
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_PASSWORD = re.compile(r"(?<=://)[^/@\s]*@")
_log = logging.getLogger(__name__)


def write_report(output: Place, folder: Place, manifest: Manifest, digest: Digest, publishable: bool) -> None:
    """Write the report of a run that is about to be published, or, with too many rejects, is not.

    A fault of the report's own does not keep a night's work from being published: then the page says what it was.

    Raises:
        UserError: it cannot be written.
    """
    before = last_published(output, manifest.run_id)
    try:
        page = render(manifest, digest, before, publishable)
    except Exception as error:
        _log.warning("run %s: the report could not be made", manifest.run_id, exc_info=True)
        page = apology(manifest.run_id, error)
    folder.child(REPORT).write(page.encode("utf-8", "replace"))


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
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    from pipeline.inference.reporting import plots

    counts, decoding = manifest.counts, manifest.decoding
    drawn = {
        "throughput": plots.throughput(digest.course),
        "sources": plots.lengths(digest.sources, decoding["max_source_tokens"], "sources"),
        "summaries": plots.lengths(digest.summaries, decoding["max_target_tokens"], "summaries"),
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "number": lambda value: f"{value:,}",
        "percent": lambda value: "–" if value is None else f"{value:.1%}",
        "duration": _duration,
        "moment": _moment,
        "text": _readable,
        "measured": _measured,
        "changed": _changed,
    }
    template = environment.from_string(resources.files(__package__).joinpath("report.html.jinja").read_text("utf-8"))
    found = findings(manifest, digest.unscored, before, publishable)
    decoded = counts.done - manifest.taken_over
    return template.render(
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
        plots={name: svg and Markup(svg) for name, svg in drawn.items()},
        rejects=sorted(counts.rejected.items(), key=lambda item: -item[1]),
        unread=list(manifest.unread.items())[:_SHOWN_FILES],
        input_bytes=sum(file.bytes for file in manifest.input_files),
        output_bytes=sum(file.bytes for file in manifest.output_files),
        options=list(_flat(manifest.config)),
        decoding=list(_flat(decoding)),
    )


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested options as dotted names with their values, as JSON."""
    flat = list[tuple[str, str]]()
    for name, value in values.items():
        if isinstance(value, dict) and value:
            flat += _flat(value, f"{prefix}{name}.")
        else:
            flat.append((prefix + name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return flat


def _readable(text: str) -> str:
    """Without control characters, which pages may not hold, and without a password in a URI."""
    return _PASSWORD.sub("…@", _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text))


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60}:{minutes % 60:02} h"


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _measured(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    return {"share": f"{value:.1%}", "tokens": f"{value:,.1f}", "nats": f"{value:.3f}"}[unit]


def _changed(value: float | None, unit: str) -> str:
    if value is None:
        return "–"
    return {"share": f"{100 * value:+.1f} points", "tokens": f"{value:+.1%}", "nats": f"{value:+.3f}"}[unit]
