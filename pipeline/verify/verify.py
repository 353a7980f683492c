"""Verify the output of a run: its files against its manifest, and its ids against those of the input.

    _SUCCESS ──> manifest ──┬──> output files: all there and no others; bytes, SHA-256 and rows of each
                            ├──> ledger segments: the same files
                            └──> unchanged input files: each row in summaries or rejects, or done by an earlier run

This module decides the order of the checks. Ray tasks read files (files.py) and compare ids (match.py); trace.py turns the
comparison into findings. The driver holds only a few ids.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import ray
from pydantic import ValidationError

from pipeline import cluster
from pipeline.data.partition import partition_count
from pipeline.errors import UserError
from pipeline.io.location import Location
from pipeline.runs import ledger
from pipeline.runs.id_rows import TASK_ROWS
from pipeline.runs.layout import (
    DATA_FOLDERS,
    LEDGER,
    MANIFEST,
    REJECTS,
    SUCCESS,
    SUMMARIES,
    data_files,
    parts_path,
    run_folder,
    run_ids,
    run_path,
)
from pipeline.runs.manifest import Manifest
from pipeline.runs.publish import FinishedRun, read_success
from pipeline.verify.files import FileTotals, read_outputs
from pipeline.verify.findings import VerificationReport
from pipeline.verify.match import match_ids
from pipeline.verify.trace import check_rows, check_totals, open_input, open_ledger


def verify(output: Location, run_id: str | None) -> VerificationReport:
    """Verify a run, by default the last finished one. Writes nothing.

    Raises:
        UserError: There is no such run, or the folder cannot be read.
        Stopped: A task failed.
    """
    return cluster.translate_errors(lambda: _verify(output, run_id))


def _verify(output: Location, run_id: str | None) -> VerificationReport:
    started, report = run_ids(output), VerificationReport(run_id or "")
    finished = _read_successes(output, started, report)
    if run_id is None:
        completed = _completed_runs(output, [name for name in started if name not in finished], report)
        by_sequence = [run.run_id for run in sorted(finished.values(), key=lambda run: run.sequence)]
        report.run_id = next(reversed([*completed, *by_sequence]), "")
    elif run_id in started and not run_folder(output, run_id).child(SUCCESS).exists():
        report.add(run_path(run_id, SUCCESS), "missing: the run is not finished")
    if report.run_id not in started:
        run = f"no run {run_id}" if run_id else "no finished run"
        raise UserError(f"{output.uri} has {run}; set --output.path to an output of jobs.summarize, or set --output.run_id")
    if manifest := _read_manifest(output, finished.get(report.run_id), report):
        cluster.connect()
        _check_run(output, manifest, report)
    return report


def _read_successes(output: Location, started: Sequence[str], report: VerificationReport) -> dict[str, FinishedRun]:
    """Read _SUCCESS of each finished run. Sequence numbers start at 1; a gap means that one was removed or edited."""
    finished: dict[str, FinishedRun] = {}
    for run_id in started:
        path = run_path(run_id, SUCCESS)
        try:
            if (run := read_success(output, run_id)) is None:
                continue
        except UserError:
            report.add(path, "has no valid sequence number: it was edited")
            continue
        if same := [other.run_id for other in finished.values() if other.sequence == run.sequence]:
            report.add(path, f"has sequence number {run.sequence}, which run {same[0]} has too: one of them was edited")
        finished[run_id] = run
    gaps = set(range(1, len(finished) + 1)) - {run.sequence for run in finished.values()}
    if gaps and not report.findings:
        report.add("runs", f"no finished run has sequence number {min(gaps)}: its {SUCCESS} was removed or edited")
    return finished


def _completed_runs(output: Location, run_ids: Sequence[str], report: VerificationReport) -> list[str]:
    """Return those runs without a valid _SUCCESS that should have one, in order of completion."""
    completed = []
    for run_id in run_ids:
        folder = run_folder(output, run_id)
        try:
            manifest = Manifest.model_validate_json(folder.child(MANIFEST).read())
        except (UserError, ValidationError):  # the run was interrupted, which is no defect
            continue
        if manifest.reject_share <= manifest.config["input"]["max_reject_share"]:
            completed.append((manifest.finished_at, run_id))
            if not folder.child(SUCCESS).exists():
                report.add(
                    run_path(run_id, SUCCESS), "missing although the run is complete: run its command again to finish it"
                )
    return [run_id for _, run_id in sorted(completed)]


def _read_manifest(output: Location, success: FinishedRun | None, report: VerificationReport) -> Manifest | None:
    path = run_path(report.run_id, MANIFEST)
    file = output.child(path)
    if not file.exists():
        report.add(path, "missing: nothing else can be checked")
        return None
    content = file.read()
    if success and success.manifest_sha256 not in (None, hashlib.sha256(content).hexdigest()):
        report.add(path, f"SHA-256 differs from the one in {SUCCESS}: the manifest was edited")
    try:
        manifest = Manifest.model_validate_json(content)
    except ValidationError:
        report.add(path, "invalid, or written by another version: nothing else can be checked")
        return None
    if manifest.run_id != report.run_id:
        report.add(path, f"belongs to run {manifest.run_id}")
        return None
    if success and success.sequence <= manifest.ledger:
        report.add(
            run_path(report.run_id, SUCCESS),
            f"has sequence number {success.sequence}, but {manifest.ledger} runs had finished when this one started",
        )
    return manifest


def _check_run(output: Location, manifest: Manifest, report: VerificationReport) -> None:
    present = _check_names(output, manifest, report)
    _check_ledger(output, manifest, report)
    input, entries = open_input(manifest, report), open_ledger(output, manifest, report)
    rows = input.rows + sum(file.rows for file in manifest.output_files)
    partitions = max(len(entries), partition_count(rows))

    metadata = {"nightshift.run_id": manifest.run_id, "nightshift.model_fingerprint": manifest.model_fingerprint}
    files = [(number, file) for number, file in enumerate(manifest.output_files) if file.path in present]
    read = read_outputs.options(num_returns=partitions + 1)
    chunks = cluster.chunk_by_weight(files, lambda numbered: numbered[1].rows, TASK_ROWS)
    tasks = [cluster.as_refs(read.remote(output, chunk, input.id_column, metadata, partitions)) for chunk in chunks]
    outputs = [id_rows for _, *id_rows in tasks]
    matched = match_ids(input.ids(partitions), outputs, entries, partitions, input.unread_files)
    totals = FileTotals()
    for file_totals, *_ in tasks:
        totals += ray.get(file_totals)

    report.findings += totals.findings
    _check_counts(manifest, totals, report)
    check_rows(output, manifest, input, matched, report)
    check_totals(manifest, input, matched, totals.rejects_without_id, report)
    counts = manifest.counts
    report.verified = {
        "files": f"{totals.intact:,}, and no others",
        "bytes": f"{totals.bytes:,}, by SHA-256",
        "rows": f"{totals.rows:,}: {counts.summarized:,} summaries, {sum(counts.rejected.values()):,} rejects",
        "ids": f"{matched.inputs:,} of the input: {matched.written:,} written, {matched.skipped:,} done by earlier runs",
    }


def _check_names(output: Location, manifest: Manifest, report: VerificationReport) -> set[str]:
    """Return the manifest's files that exist. Report any others, since readers take every file of a folder."""
    present = data_files(output, manifest.run_id).keys()
    listed = Counter(file.path for file in manifest.output_files)
    for path, times in listed.items():
        if times > 1:
            report.add(path, f"the manifest lists it {times} times")
        if path not in present:
            report.add(path, "missing")
    for path in sorted(present - listed.keys()):
        report.add(path, "not in the manifest")
    return present & listed.keys()


def _check_ledger(output: Location, manifest: Manifest, report: VerificationReport) -> None:
    """Compare the manifest with the run's ledger segments, which record the files of each window."""
    path = parts_path(LEDGER, manifest.run_id)
    if not output.child(path).exists():
        report.notes.append("the ledger was compacted: output files are compared with the manifest only")
        return
    try:
        recorded = {file.path: file for record in ledger.window_records(output, manifest.run_id) for file in record.files}
    except UserError as error:
        report.add(path, str(error))
        return
    listed = {file.path: file for file in manifest.output_files}
    for name in sorted(recorded.keys() | listed.keys()):
        if recorded.get(name) != listed.get(name):
            report.add(name, "the manifest and the ledger segment written with the file disagree about it")


def _check_counts(manifest: Manifest, totals: FileTotals, report: VerificationReport) -> None:
    """Check that the counts of the manifest add up, and that the files have as many rejects of each reason."""
    counts, path = manifest.counts, run_path(manifest.run_id, MANIFEST)
    rows = {name: sum(file.rows for file in manifest.output_files if file.path.startswith(f"{name}/")) for name in DATA_FOLDERS}
    rejected = sum(counts.rejected.values())
    sums = {
        "summarized documents": (counts.summarized, rows[SUMMARIES]),
        "rejected documents": (rejected, rows[REJECTS]),
        "documents read": (counts.read, sum(counts.skipped.values()) + counts.summarized + rejected),
        "input rows": (counts.read + counts.unread, sum(file.rows for file in manifest.input_files)),
    }
    for name, (count, total) in sums.items():
        if count != total:
            report.add(path, f"says {count:,} {name}, but they add up to {total:,}")
    if not report.findings and totals.reject_reasons != Counter(counts.rejected):
        report.add(path, f"says rejects are {counts.rejected}, but the files have {dict(totals.reject_reasons)}")
