"""Where each row of a run's input went: to summaries, to rejects, or nowhere, since an earlier run had done it.

Input files that have changed since are left out, and what is not proved because of them is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions

from pipeline import cluster
from pipeline.data.arrow import to_texts
from pipeline.data.documents import DocumentFile, list_files
from pipeline.data.row_address import ROW_BITS
from pipeline.data.split_reader import read_split
from pipeline.data.splits import RowRange, Split, cut_splits
from pipeline.errors import UserError
from pipeline.io.location import Location, StoredFile, open_location
from pipeline.runs import ledger
from pipeline.runs.id_rows import read_ids
from pipeline.runs.layout import LEDGER, REJECTS, SUMMARIES, parts_path
from pipeline.runs.manifest import InputFile, Manifest
from pipeline.runs.unreadable_files import UnreadableFiles
from pipeline.verify.findings import VerificationReport
from pipeline.verify.match import MatchCounts, Rows

_WINDOW_ROWS = 16_384


@dataclass(frozen=True)
class Input:
    """The input of a run, as far as it is as it was. gone: rows of files that are not."""

    root: Location
    id_column: str
    files: Sequence[InputFile]
    gone: int
    unread: Sequence[int]
    """Numbers of those files that the run could not read to their ends."""

    @property
    def rows(self) -> int:
        """In the files that are as they were."""
        return sum(file.rows for file in self.files)

    @property
    def unread_rows(self) -> int:
        """At most, that the run could not read."""
        return sum(self.files[number].rows for number in self.unread)

    def ids(self, parts: int) -> list[list[ray.ObjectRef[Rows]]]:
        """Of each task, the rows that have an id (census.SEEN), by part."""
        # Into how many row groups a file is divided is not known here: units are cut as if it were one.
        files = [DocumentFile(StoredFile(f.path, f.bytes, f.modified), (f.rows,) if f.rows else ()) for f in self.files]
        return read_ids(
            list(cut_splits(files, _WINDOW_ROWS)), self.root.filesystem, self.id_column, parts, UnreadableFiles("skip")
        )


def open_input(manifest: Manifest, verdict: VerificationReport) -> Input:
    """Find what is left of a run's input."""
    options = manifest.config["input"]
    root = open_location(options["path"], "the input of the run")
    found = set[tuple[Any, ...]]()
    try:
        found = {(file.path, file.size, file.modified) for file in list_files(root)}
    except UserError as error:
        verdict.notes.append(f"the input is not there any more: {error}")
    files, changed = list[InputFile](), list[InputFile]()
    for file in manifest.input_files:
        (files if (file.path, file.bytes, file.modified) in found else changed).append(file)
    if changed:
        verdict.notes.append(
            f"{len(changed):,} of {len(manifest.input_files):,} input files have changed since the run, {changed[0].path} "
            "among them: the ids that were in them cannot be proved any more"
        )
    unread = [number for number, file in enumerate(files) if file.path in manifest.unread]
    return Input(root, options["id_column"], files, sum(file.rows for file in changed), unread)


def open_ledger(output: Location, manifest: Manifest, verdict: VerificationReport) -> Sequence[ray.ObjectRef[ledger.Entries]]:
    """The parts of that by which the run skipped documents."""
    if not manifest.ledger:
        return []
    try:
        compacted = ledger.compacted_sequence(output)
        if compacted > manifest.ledger:
            verdict.notes.append("the ledger was compacted since: which ids were skipped is proved by their number alone")
        return ledger.load(output, max(manifest.ledger, compacted)).parts
    except (UserError, ray.exceptions.RayError) as error:
        told = cluster.to_user_error(error) if isinstance(error, ray.exceptions.RayError) else error
        verdict.found(LEDGER, f"{told}; no id can be proved to have been done before")
        return []


def check_rows(
    output: Location, manifest: Manifest, input: Input, matched: MatchCounts, unnamed: int, verdict: VerificationReport
) -> None:
    """Say which ids are not where they should be. unnamed: rows of rejects without one."""
    summaries, written = parts_path(SUMMARIES, manifest.run_id), manifest.output_files

    def outputs(at: int) -> tuple[Location, str, int, int]:
        file, row = written[at >> ROW_BITS], at % (1 << ROW_BITS)
        return output, output.child(file.path).path, row, file.rows

    def inputs(at: int) -> tuple[Location, str, int, int]:
        file, row = input.files[at >> ROW_BITS], at % (1 << ROW_BITS)
        return input.root, file.path, row, file.rows

    if misses := matched.doubled:
        where = _describe_rows(map(outputs, misses.at), input.id_column)
        verdict.found(summaries, f"{misses.rows:,} rows here or in rejects have an id that another has: {where}")
    if misses := matched.lost:
        where = _describe_rows(map(inputs, misses.at), input.id_column)
        verdict.found(summaries, f"{misses.rows:,} rows of the input are not here, nor in rejects, nor done before: {where}")
    # A row of the output may be of a file that has changed, or of one that could be read further then.
    if (misses := matched.foreign).rows > input.gone + input.unread_rows:
        where = _describe_rows(map(outputs, misses.at), input.id_column)
        verdict.found(summaries, f"{misses.rows:,} rows here or in rejects have an id that the input has not so often: {where}")
    if input.unread:
        verdict.notes.append(
            f"{matched.unread:,} rows that the run could not read, of {len(input.unread):,} files that its manifest names, are "
            "in no output"
        )
    if input.gone or input.unread:
        return
    skipped, without = sum(manifest.counts.skipped.values()), input.rows - matched.inputs
    if matched.skipped != skipped and not matched.lost:
        verdict.found(
            summaries,
            f"{matched.skipped:,} ids of the input are not here, nor in rejects, where the manifest says that {skipped:,} were "
            "done before",
        )
    if without != unnamed:
        verdict.found(
            parts_path(REJECTS, manifest.run_id),
            f"has {unnamed:,} rows without an id, where {without:,} of the input have none or cannot be read",
        )


def _describe_rows(places: Iterator[tuple[Location, str, int, int]], id_column: str) -> str:
    """The first few rows of a kind: their ids, and where they are."""
    told = []
    for root, path, row, of_rows in places:
        where = f"row {row:,} of {path}"
        try:
            [table] = read_split(Split(0, (RowRange(path, 0, row, 1, of_rows),)), root.filesystem, [id_column], 1)
            told.append(f"{to_texts(table[id_column])[0]!r} ({where})")
        except (UserError, ValueError, StopIteration, RuntimeError):  # the file is spoilt: where the row is says enough
            told.append(where)
    return ", ".join(told)
