"""Record which rows of unreadable files a run skips, so that it skips the same rows for the rest of the run.

    runs/<run_id>/unread/unit-<n>.json    skipped rows of split n, written before a window is cut without them

Windows consist of the rows that could be read and are named by their order. A task that reads a split again after a crash must
therefore get the same rows: it skips what was skipped before, even if it is readable now, and must not fail on other rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from pipeline.data.split_reader import ReadFailure, fail_run
from pipeline.data.splits import RowRange, Split
from pipeline.errors import UserError
from pipeline.io.location import Location
from pipeline.runs.manifest import UnreadRows

_UNREAD_BY_PATH: TypeAdapter[dict[str, UnreadRows]] = TypeAdapter(dict[str, UnreadRows])


@dataclass(frozen=True)
class UnreadableFiles:
    """The unreadable files of a run.

    Attributes:
        policy: Whether the first one ends the run.
        folder: Where skipped rows are recorded; None keeps no record.
        sealed: Whether no more rows may be skipped, because a task may already have read them.
    """

    policy: Literal["fail", "skip"]
    folder: Location | None = None
    sealed: bool = False

    def seal(self) -> UnreadableFiles:
        return replace(self, sealed=True)

    def of(self, split: Split) -> SplitUnreadable:
        """Read which rows of a split are skipped."""
        record = self.folder.child(f"unit-{split.number:06}.json") if self.folder and self.policy == "skip" else None
        try:
            unread = _UNREAD_BY_PATH.validate_json(record.read()) if record and record.exists() else {}
        except ValidationError:
            raise UserError(f"{record.uri if record else ''} is broken; start a new run with --output.run_id") from None
        return SplitUnreadable(self.policy, record, split, self.sealed, unread)


@dataclass(frozen=True)
class SplitUnreadable:
    """The skipped rows of one split.

    Attributes:
        record: File that keeps them, if any.
        unread: Skipped rows by path.
    """

    policy: Literal["fail", "skip"]
    record: Location | None
    split: Split
    sealed: bool
    unread: dict[str, UnreadRows]

    @property
    def readable(self) -> Split:
        """The split without the skipped rows."""
        row_ranges = map(self._readable_range, self.split.row_ranges)
        return replace(self.split, row_ranges=tuple(row_range for row_range in row_ranges if row_range.rows))

    def _readable_range(self, row_range: RowRange) -> RowRange:
        unread = self.unread.get(row_range.path)
        if unread is None:
            return row_range
        return replace(row_range, rows=max(0, row_range.rows - (unread.rows or 0)), is_small=False)

    def note(self, failure: ReadFailure) -> None:
        """Skip the rest of a file. Raises UserError if the policy is to fail, or a task of this run could read it before."""
        if self.policy == "fail":
            fail_run(failure)
        if self.sealed:
            raise UserError(
                f"cannot read {failure.path}, which this run could read before: {failure.error}; run the same command when "
                "it is readable again, or start a new run with --output.run_id"
            )
        unread = UnreadRows(rows=failure.rows, error=failure.error)
        previous = self.unread.get(failure.path)  # skipped further down in the file, when ids were read
        self.unread[failure.path] = unread if previous is None else previous + unread
        if self.record:
            self.record.write(_UNREAD_BY_PATH.dump_json(self.unread))
