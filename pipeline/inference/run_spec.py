"""Read and write ``runs/<run_id>/plan.parquet``, which fixes the input files of a run, and the options of its results.

The options are metadata of the file. A command that resumes the run reads them, so that it cuts the same windows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AwareDatetime, BaseModel, NonNegativeInt, PositiveInt

from pipeline.data.documents import DocumentFile
from pipeline.errors import UserError, describe_error
from pipeline.io.location import Location, StoredFile
from pipeline.io.parquet import to_parquet
from pipeline.runs.layout import PLAN, run_folder

INPUT_OPTIONS = {"path", "id_column", "text_column", "keep_columns", "max_chars"}
"""Options of the input that results depend on."""

SPEC_KEY = b"nightshift.plan"
"""Key of the RunSpec in the metadata of plan.parquet."""

PLAN_FILES = pa.schema(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("modified", pa.timestamp("us", "UTC")),
        ("row_groups", pa.list_(pa.int64())),
    ]
)
"""Columns of plan.parquet, which has a row per input file."""

_ROW_GROUP_ROWS = 100_000


class RunSpec(BaseModel):
    """Options of a run. The first four, and ``full``, are what a command asks for; a command with others cannot resume it.

    Attributes:
        after: Sequence number of the latest finished run when this one started.
        ledger: The same, or 0 to process all documents.
        unread: Why files that are not Parquet or lack columns are skipped, by path.
        unread_files: Size and modification time of each of those files.
    """

    started_at: AwareDatetime
    input: dict[str, Any]
    model_fingerprint: str
    decoding: dict[str, Any]
    full: bool
    window_rows: PositiveInt
    window_tokens: PositiveInt | None
    sort: str = "window"
    precision: str = "float32"
    after: NonNegativeInt = 0
    ledger: NonNegativeInt
    unread: dict[str, str]
    unread_files: dict[str, tuple[NonNegativeInt, AwareDatetime | None]] = {}

    @property
    def unread_bytes(self) -> int:
        return sum(size for size, _ in self.unread_files.values())

    def differences(self, other: RunSpec) -> list[str]:
        """Return what this run asks for that another one does not, as text."""
        differences = {
            "another input": self.input != other.input,
            "another model": self.model_fingerprint != other.model_fingerprint,
            "other decoding options": self.decoding != other.decoding,
            "--full" if self.full else "without --full": self.full != other.full,
        }
        return [text for text, differs in differences.items() if differs]

    def replaces(self, other: RunSpec) -> bool:
        """Return whether this run, if it finished after ``other`` started, has done all that ``other`` was asked for."""
        return set(self.differences(other)) <= {"--full"}


def write_plan(file: Location, files: Sequence[DocumentFile], spec: RunSpec) -> None:
    """Write plan.parquet. Raises UserError if it cannot be written."""
    rows = [
        {"path": f.file.path, "size": f.file.size, "modified": f.file.modified, "row_groups": list(f.row_groups)} for f in files
    ]
    table = pa.Table.from_pylist(rows, PLAN_FILES).replace_schema_metadata({SPEC_KEY: spec.model_dump_json()})
    file.write(to_parquet(table, row_group_size=_ROW_GROUP_ROWS))


def read_spec(output: Location, run_id: str) -> RunSpec | None:
    """Return the options of a run; None if it has no plan."""
    file = run_folder(output, run_id).child(PLAN)
    return read_plan(file)[1] if file.exists() else None


def read_plan(file: Location) -> tuple[list[DocumentFile], RunSpec]:
    """Read plan.parquet. Raises UserError if it is broken."""
    try:
        table = pq.read_table(pa.BufferReader(file.read()))
        spec = RunSpec.model_validate_json(table.schema.metadata[SPEC_KEY])
        rows = table.cast(PLAN_FILES).to_pylist()
        files = [DocumentFile(StoredFile(r["path"], r["size"], r["modified"]), tuple(r["row_groups"])) for r in rows]
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"{file.uri} is broken: {describe_error(error)}; set another --output.run_id, or remove it") from None
    return files, spec
