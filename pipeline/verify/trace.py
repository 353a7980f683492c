"""Trace each input row of a run to summaries, to rejects, or to the earlier run that did it.

Input files that have changed since the run are not read; the report notes what could not be checked because of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions

from pipeline import cluster
from pipeline.data.arrow import to_texts
from pipeline.data.documents import DocumentFile, list_files
from pipeline.data.row_address import unpack_address
from pipeline.data.split_reader import read_split
from pipeline.data.splits import RowRange, Split, cut_splits
from pipeline.errors import UserError
from pipeline.io.location import Location, StoredFile, open_location
from pipeline.runs import ledger
from pipeline.runs.id_rows import read_ids
from pipeline.runs.layout import LEDGER, REJECTS, SUMMARIES, parts_path
from pipeline.runs.manifest import InputFile, Manifest
from pipeline.runs.publish import finished_runs
from pipeline.runs.unreadable_files import UnreadableFiles
from pipeline.verify.findings import VerificationReport
from pipeline.verify.match import IdRows, MatchCounts, RowSample

_WINDOW_ROWS = 16_384


@dataclass(frozen=True)
class Input:
    """The input of a run, as far as it is still the same.

    Attributes:
        files: Files that have not changed since the run.
        changed_rows: Rows of the files that have.
        unread_files: Indexes into ``files`` of those that the run could not read to the end.
    """

    root: Location
    id_column: str
    files: Sequence[InputFile]
    changed_rows: int
    unread_files: Sequence[int]

    @property
    def rows(self) -> int:
        return sum(file.rows for file in self.files)

    @property
    def max_unread_rows(self) -> int:
        """Upper bound of the rows that the run could not read."""
        return sum(self.files[number].rows for number in self.unread_files)

    def ids(self, partitions: int) -> list[list[ray.ObjectRef[IdRows]]]:
        """Read the rows with an id (ID_ROW) of each task, by partition."""
        # The manifest does not record row groups: cut splits as if each file had one.
        files = [DocumentFile(StoredFile(f.path, f.bytes, f.modified), (f.rows,) if f.rows else ()) for f in self.files]
        splits = list(cut_splits(files, _WINDOW_ROWS))
        return read_ids(splits, self.root.filesystem, self.id_column, partitions, UnreadableFiles("skip"))


def open_input(manifest: Manifest, report: VerificationReport) -> Input:
    """Find the input files of a run that have not changed since."""
    options = manifest.config["input"]
    root = open_location(options["path"], "the input of the run")
    present = set[tuple[Any, ...]]()
    try:
        present = {(file.path, file.size, file.modified) for file in list_files(root)}
    except UserError as error:
        report.notes.append(f"the input cannot be listed: {error}")
    files, changed = list[InputFile](), list[InputFile]()
    for file in manifest.input_files:
        (files if (file.path, file.bytes, file.modified) in present else changed).append(file)
    if changed:
        report.notes.append(
            f"{len(changed):,} of {len(manifest.input_files):,} input files have changed since the run "
            f"(for example {changed[0].path}): their ids cannot be checked"
        )
    unread_files = [number for number, file in enumerate(files) if file.path in manifest.unread]
    return Input(root, options["id_column"], files, sum(file.rows for file in changed), unread_files)


def open_ledger(output: Location, manifest: Manifest, report: VerificationReport) -> Sequence[ray.ObjectRef[ledger.Entries]]:
    """Load the ledger by which the run skipped documents, by partition."""
    if not manifest.ledger:
        return []
    try:
        compacted = ledger.compacted_sequence(output)
        if compacted > manifest.ledger:
            report.notes.append("the ledger was compacted after the run: skipped ids are checked by their count only")
        return ledger.load(output, finished_runs(output), max(manifest.ledger, compacted)).parts
    except (UserError, ray.exceptions.RayError) as error:
        cause = cluster.to_user_error(error) if isinstance(error, ray.exceptions.RayError) else error
        report.add(LEDGER, f"{cause}; ids that earlier runs did cannot be checked")
        return []


def check_rows(output: Location, manifest: Manifest, input: Input, matched: MatchCounts, report: VerificationReport) -> None:
    """Report input rows that are in no output, and output rows that should not exist."""
    summaries, id_column = parts_path(SUMMARIES, manifest.run_id), input.id_column
    output_files = [(output.child(file.path).path, file.rows) for file in manifest.output_files]
    if sample := matched.duplicates:
        rows = _describe_rows(output, output_files, sample, id_column)
        report.add(summaries, f"{sample.rows:,} rows of summaries and rejects repeat the id of another row: {rows}")
    if sample := matched.missing:
        rows = _describe_rows(input.root, [(file.path, file.rows) for file in input.files], sample, id_column)
        report.add(summaries, f"{sample.rows:,} input rows are missing from summaries, rejects and earlier runs: {rows}")
    # The id of such a row may be in a changed file, or in one that could be read further during the run.
    if (sample := matched.unexpected).rows > input.changed_rows + input.max_unread_rows:
        rows = _describe_rows(output, output_files, sample, id_column)
        problem = f"{sample.rows:,} rows of summaries and rejects have ids that are not in the input, or not as often: {rows}"
        report.add(summaries, problem)
    if input.unread_files:
        report.notes.append(
            f"{matched.unread:,} rows of {len(input.unread_files):,} files that the run could not read (the manifest lists "
            "them) are in no output"
        )


def check_totals(
    manifest: Manifest, input: Input, matched: MatchCounts, rejects_without_id: int, report: VerificationReport
) -> None:
    """Compare the counts of skipped ids and of rows without an id, if the whole input could be read."""
    if input.unread_files or input.changed_rows:
        return
    skipped = sum(manifest.counts.skipped.values())
    if matched.skipped != skipped and not matched.missing:
        report.add(
            parts_path(SUMMARIES, manifest.run_id),
            f"{matched.skipped:,} input ids are in neither summaries nor rejects, but the manifest says that earlier runs did "
            f"{skipped:,}",
        )
    without_id = input.rows - matched.inputs
    if without_id != rejects_without_id:
        report.add(
            parts_path(REJECTS, manifest.run_id),
            f"has {rejects_without_id:,} rows without an id, but {without_id:,} input rows have no id or cannot be read",
        )


def _describe_rows(root: Location, files: Sequence[tuple[str, int]], sample: RowSample, id_column: str) -> str:
    """Describe a few rows by id and place. ``files`` has the path and the number of rows of each file."""
    descriptions = []
    for file_number, row in map(unpack_address, sample.addresses):
        path, file_rows = files[file_number]
        place = f"row {row:,} of {path}"
        try:
            [table] = read_split(Split(0, (RowRange(path, 0, row, 1, file_rows),)), root.filesystem, [id_column], 1)
            descriptions.append(f"{to_texts(table[id_column])[0]!r} ({place})")
        except (UserError, ValueError, StopIteration, RuntimeError):  # a damaged file: the place says enough
            descriptions.append(place)
    return ", ".join(descriptions)
