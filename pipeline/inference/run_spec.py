"""What a run pins at its start, in plan.parquet."""

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

_OPTIONS = b"nightshift.plan"


_ROW_GROUP_ROWS = 100_000


INPUT_OPTIONS = {"path", "id_column", "text_column", "keep_columns", "max_chars"}


class RunSpec(BaseModel):
    """The options of a run that whoever goes on with it must share, or takes over from it.

    after: sequence number of the last run that was published when it began; ledger: the same, or 0 to do all documents. unread:
    what is wrong with files that are no Parquet or have other columns, by path, where the run goes on without them;
    unread_files: bytes of each and when it was written, as it was then.
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
        """Of those files."""
        return sum(size for size, _ in self.unread_files.values())

    def differs(self, other: RunSpec) -> list[str]:
        """What another run would compute otherwise."""
        names = {
            "another input": self.input != other.input,
            "another model": self.model_fingerprint != other.model_fingerprint,
            "other decoding options": self.decoding != other.decoding,
            "--full" if self.full else "without --full": self.full != other.full,
        }
        return [name for name, differs in names.items() if differs]

    def replaces(self, before: RunSpec) -> bool:
        """Whether a run that was published since ``before`` began has done what that one was to do."""
        return set(self.differs(before)) <= {"--full"}


_FILES = pa.schema(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("modified", pa.timestamp("us", "UTC")),
        ("row_groups", pa.list_(pa.int64())),
    ]
)


def write_plan(file: Location, files: Sequence[DocumentFile], spec: RunSpec) -> None:
    """Write the input files of a run and its options. Raises UserError if the file cannot be written."""
    rows = [
        {"path": f.file.path, "size": f.file.size, "modified": f.file.modified, "row_groups": list(f.row_groups)} for f in files
    ]
    table = pa.Table.from_pylist(rows, _FILES).replace_schema_metadata({_OPTIONS: spec.model_dump_json()})
    file.write(to_parquet(table, row_group_size=_ROW_GROUP_ROWS))


def read_spec(output: Location, run_id: str) -> RunSpec | None:
    """What a run began with; None where it has left no plan."""
    file = run_folder(output, run_id).child(PLAN)
    return read_plan(file)[1] if file.exists() else None


def read_plan(file: Location) -> tuple[list[DocumentFile], RunSpec]:
    try:
        table = pq.read_table(pa.BufferReader(file.read()))
        spec = RunSpec.model_validate_json(table.schema.metadata[_OPTIONS])
        rows = table.cast(_FILES).to_pylist()
        files = [DocumentFile(StoredFile(r["path"], r["size"], r["modified"]), tuple(r["row_groups"])) for r in rows]
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"{file.uri} is broken: {describe_error(error)}; set another --output.run_id, or remove it") from None
    return files, spec
