"""Prove a run's output: its files against its manifest, and its ids against those of the input.

    _SUCCESS ── manifest ──┬── files that are there, and no others ── bytes, sha256, rows of each
                           ├── the ledger's segments, which tell the same of each file
                           └── input files, if they are as they were ── each row in summaries or rejects, or skipped

What reads files is outputs.py, what compares ids matching.py, both in Ray tasks; what follows from that for the input's rows is
tracing.py's business. The driver sees no id but a few.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import ray
import ray.exceptions
from pydantic import ValidationError

from pipeline import cluster
from pipeline.data.partition import partition_count
from pipeline.errors import UserError
from pipeline.io.location import Location
from pipeline.runs import ledger
from pipeline.runs.id_rows import TASK_ROWS
from pipeline.runs.layout import KINDS, LEDGER, MANIFEST, REJECTS, SUCCESS, SUMMARIES, parts_path, run_folder, run_ids, run_path
from pipeline.runs.manifest import Manifest
from pipeline.runs.publish import FinishedRun, read_success
from pipeline.verify.files import ExpectedFiles, FileTotals, read_outputs
from pipeline.verify.findings import VerificationReport
from pipeline.verify.match import match_ids
from pipeline.verify.trace import check_rows, open_input, open_ledger


def verify(output: Location, run_id: str | None) -> VerificationReport:
    """Read a run's output again; None: of the last run that is published. Nothing is written.

    Raises:
        UserError: there is no such run, or the folder cannot be read.
        Stopped: a task failed.
    """
    try:
        return _verify(output, run_id)
    except ray.exceptions.RayError as error:
        raise cluster.to_user_error(error) from None


def _verify(output: Location, run_id: str | None) -> VerificationReport:
    begun, verdict = run_ids(output), VerificationReport(run_id or "")
    ends = _read_successes(output, begun, verdict)
    if run_id is None:
        unpublished = _unpublished_runs(output, [name for name in begun if name not in ends], verdict)
        last = [end.run_id for end in sorted(ends.values(), key=lambda end: end.sequence)]
        verdict.run_id = next(reversed([*unpublished, *last]), "")
    elif run_id in begun and not run_folder(output, run_id).child(SUCCESS).exists():
        verdict.found(run_path(run_id, SUCCESS), "is not there: the run is not published")
    if verdict.run_id not in begun:
        what = f"no run {run_id} has begun" if run_id else "no run is finished"
        raise UserError(f"{what} in {output.uri}; set --output.path to a folder that jobs.summarize wrote, or --output.run_id")
    if manifest := _read_manifest(output, ends.get(verdict.run_id), verdict):
        cluster.connect()
        _check_run(output, manifest, verdict)
    return verdict


def _read_successes(output: Location, begun: Sequence[str], verdict: VerificationReport) -> dict[str, FinishedRun]:
    """The ends of the published runs, by run. They are numbered from 1; one that is missing was removed, or edited."""
    ends: dict[str, FinishedRun] = {}
    for run_id in begun:
        path = run_path(run_id, SUCCESS)
        try:
            if (end := read_success(output, run_id)) is None:
                continue
        except UserError:
            verdict.found(path, "does not say which run of its folder it was the end of: it was edited")
            continue
        if same := [other.run_id for other in ends.values() if other.sequence == end.sequence]:
            verdict.found(path, f"says that the run is number {end.sequence}, as that of run {same[0]} does: one was edited")
        ends[run_id] = end
    numbers = {end.sequence for end in ends.values()}
    if not verdict.findings and (missing := sorted(set(range(1, len(ends) + 1)) - numbers)):
        verdict.found("runs", f"number {missing[0]} of the published runs is missing: its {SUCCESS} was removed or edited")
    return ends


def _unpublished_runs(output: Location, run_ids: Sequence[str], verdict: VerificationReport) -> list[str]:
    """Of runs that have no sound end, those that came to one and should be published, the last of them last."""
    found = []
    for run_id in run_ids:
        folder = run_folder(output, run_id)
        try:
            manifest = Manifest.model_validate_json(folder.child(MANIFEST).read())
        except (UserError, ValidationError):  # it was cut off: that is no fault of an output
            continue
        if manifest.reject_share <= manifest.config["input"]["max_reject_share"]:
            found.append((manifest.finished_at, run_id))
            if not folder.child(SUCCESS).exists():
                verdict.found(
                    run_path(run_id, SUCCESS), "is not there, though the run came to its end: its command publishes it"
                )
    return [run_id for _, run_id in sorted(found)]


def _read_manifest(output: Location, end: FinishedRun | None, verdict: VerificationReport) -> Manifest | None:
    path = run_path(verdict.run_id, MANIFEST)
    file = output.child(path)
    if not file.exists():
        verdict.found(path, "is not there: nothing can be proved without it")
        return None
    content = file.read()
    if end and end.manifest_sha256 not in (None, hashlib.sha256(content).hexdigest()):
        verdict.found(path, f"is not the one that the run wrote: {SUCCESS} says another sha256")
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError:
        verdict.found(path, "is broken, or of another version: nothing can be proved by it")
        return None
    if manifest.run_id != verdict.run_id:
        verdict.found(path, f"is that of run {manifest.run_id}")
        return None
    if end and end.sequence <= manifest.ledger:
        verdict.found(
            run_path(verdict.run_id, SUCCESS),
            f"says number {end.sequence}, but {manifest.ledger} runs were published when this one began",
        )
    return manifest


def _check_run(output: Location, manifest: Manifest, verdict: VerificationReport) -> None:
    there = _check_names(output, manifest, verdict)
    _check_records(output, manifest, verdict)
    input, known = open_input(manifest, verdict), open_ledger(output, manifest, verdict)
    rows = input.rows + sum(file.rows for file in manifest.output_files)
    parts = max(len(known), partition_count(rows))

    metadata = {"nightshift.run_id": manifest.run_id, "nightshift.model_fingerprint": manifest.model_fingerprint}
    expected = ExpectedFiles(input.id_column, metadata)
    files = [(number, file) for number, file in enumerate(manifest.output_files) if file.path in there]
    reading = read_outputs.options(num_returns=parts + 1)
    chosen = cluster.chunk_by_weight(files, lambda numbered: numbered[1].rows, TASK_ROWS)
    outputs = [cluster.as_refs(reading.remote(output, some, expected, parts)) for some in chosen]
    matched = match_ids(input.ids(parts), [rows for _, *rows in outputs], known, parts, input.unread)
    read = FileTotals()
    for came, *_ in outputs:
        read += ray.get(came)

    verdict.findings += read.findings
    _check_counts(manifest, read, verdict)
    check_rows(output, manifest, input, matched, read.unnamed, verdict)
    counts = manifest.counts
    verdict.proved = {
        "files": f"{read.sound:,}, and no others",
        "bytes": f"{read.bytes:,}, by their sha256",
        "rows": f"{read.rows:,}: {counts.summarized:,} summaries, {sum(counts.rejected.values()):,} rejects",
        "ids": f"{matched.inputs:,} of the input: {matched.found:,} written, {matched.skipped:,} done by earlier runs",
    }


def _check_names(output: Location, manifest: Manifest, verdict: VerificationReport) -> set[str]:
    """Those of the manifest's files that are there. Others that are there are findings, for readers take them all."""
    found = set[str]()
    for kind in KINDS:
        folder = parts_path(kind, manifest.run_id)
        here = output.child(folder)
        files = here.files() if here.exists() else []
        found |= {f"{folder}/{file.path[len(here.path) :].strip('/')}" for file in files}
    named = Counter(file.path for file in manifest.output_files)
    for path, times in named.items():
        if times > 1:
            verdict.found(path, f"the manifest names it {times} times")
        if path not in found:
            verdict.found(path, "is not there")
    for path in sorted(found - named.keys()):
        verdict.found(path, "the manifest does not name it")
    return found & named.keys()


def _check_records(output: Location, manifest: Manifest, verdict: VerificationReport) -> None:
    """A segment of the ledger tells of the files that were written before it; those of a compacted ledger are gone."""
    folder = parts_path(LEDGER, manifest.run_id)
    if not output.child(folder).exists():
        verdict.notes.append("the ledger was compacted: nothing but the manifest tells what the files were")
        return
    try:
        written = {file.path: file for record in ledger.window_records(output, manifest.run_id) for file in record.files}
    except UserError as error:
        verdict.found(folder, str(error))
        return
    named = {file.path: file for file in manifest.output_files}
    for path in sorted(written.keys() | named.keys()):
        if written.get(path) != named.get(path):
            verdict.found(path, "the manifest says otherwise of it than the ledger's segment, which was written with it")


def _check_counts(manifest: Manifest, read: FileTotals, verdict: VerificationReport) -> None:
    counts, path = manifest.counts, run_path(manifest.run_id, MANIFEST)
    rows = {kind: sum(file.rows for file in manifest.output_files if file.path.startswith(f"{kind}/")) for kind in KINDS}
    rejected = sum(counts.rejected.values())
    sums = {
        "summarized documents": (counts.summarized, rows[SUMMARIES]),
        "rejected documents": (rejected, rows[REJECTS]),
        "documents that it read": (counts.read, sum(counts.skipped.values()) + counts.summarized + rejected),
        "rows of its input": (counts.read + counts.unread, sum(file.rows for file in manifest.input_files)),
    }
    for what, (counted, added_up) in sums.items():
        if counted != added_up:
            verdict.found(path, f"counts {counted:,} {what}, which add up to {added_up:,}")
    if not verdict.findings and read.reasons != Counter(counts.rejected):
        verdict.found(path, f"counts rejects as {counts.rejected}, and they are {dict(read.reasons)}")
