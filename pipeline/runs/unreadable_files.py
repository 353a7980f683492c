"""Files that cannot be read, where a run goes on without them: what is left out once is left out for good.

    runs/<run_id>/unread/unit-<n>.json    which rows of a unit's files are, written before a window is cut without them

Windows are cut from the rows that are read, and named by their order. Whoever reads a unit again, after a crash, must find the
same rows: those that were left out stay so, though they could be read now, and those that were read may not fail.
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

_ROWS_BY_PATH: TypeAdapter[dict[str, UnreadRows]] = TypeAdapter(dict[str, UnreadRows])


@dataclass(frozen=True)
class UnreadableFiles:
    """The unreadable files of a run.

    Attributes:
        policy: whether the first one ends the run.
        folder: where skipped rows are recorded; None: nowhere.
        sealed: rows may no longer be skipped, because a task may already have read them.
    """

    policy: Literal["fail", "skip"]
    folder: Location | None = None
    sealed: bool = False

    def seal(self) -> UnreadableFiles:
        """Return the same files, sealed."""
        return replace(self, sealed=True)

    def of(self, unit: Split) -> SplitUnreadable:
        """Read which rows of a split are skipped."""
        note = self.folder.child(f"unit-{unit.number:06}.json") if self.folder and self.policy == "skip" else None
        try:
            unread = _ROWS_BY_PATH.validate_json(note.read()) if note and note.exists() else {}
        except ValidationError:
            raise UserError(f"{note.uri if note else ''} is broken; begin another run: --output.run_id") from None
        return SplitUnreadable(self.policy, note, unit, self.sealed, unread)


@dataclass(frozen=True)
class SplitUnreadable:
    """What is left out of a unit. unread: by path."""

    policy: Literal["fail", "skip"]
    file: Location | None
    unit: Split
    sealed: bool
    unread: dict[str, UnreadRows]

    @property
    def readable(self) -> Split:
        """The unit without it."""
        return replace(self.unit, spans=tuple(span for whole in self.unit.spans if (span := self._read_of(whole)).rows))

    def _read_of(self, span: RowRange) -> RowRange:
        left_out = self.unread.get(span.path)
        return span if left_out is None else replace(span, rows=max(0, span.rows - (left_out.rows or 0)), small=False)

    def note(self, file: ReadFailure) -> None:
        """Leave out the rest of a file.

        Raises:
            UserError: the run ends with it; or another task, or command, of this run has read it.
        """
        if self.policy == "fail":
            fail_run(file)
        if self.sealed:
            raise UserError(
                f"cannot read {file.path}, which this run could before: {file.error}; run it again once it can be read, "
                "or begin another run: --output.run_id"
            )
        left_out = UnreadRows(rows=file.rows, error=file.error)
        before = self.unread.get(file.path)  # by the census, further on in the file
        self.unread[file.path] = left_out if before is None else before + left_out
        if self.file:
            self.file.write(_ROWS_BY_PATH.dump_json(self.unread))
