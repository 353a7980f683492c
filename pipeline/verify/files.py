"""Read the files of a run again: compare each with its manifest entry, and collect the ids in it.

A file is read in pieces, so memory does not grow with its size. How the ids of all files compare is the job of match.py.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from pipeline.cluster import LIGHT_CPUS
from pipeline.data.partition import partition_rows
from pipeline.data.rejects import RejectReason
from pipeline.data.row_address import row_addresses
from pipeline.errors import describe_error
from pipeline.io.location import Location
from pipeline.io.memory_limit import memory_limit
from pipeline.runs.id_rows import BATCH_ROWS, ID_ROW, id_rows
from pipeline.runs.layout import REJECTS
from pipeline.runs.manifest import OutputFile
from pipeline.verify.findings import Finding
from pipeline.verify.match import DUPLICATE_BIT, IdRows

_PIECE_BYTES = 4 * 2**20


@dataclass
class FileTotals:
    """Sums over files.

    Attributes:
        findings: Differences from the manifest.
        intact: Files without any; rows and bytes count these files only.
        reject_reasons: Rejects by reason.
        rejects_without_id: Rejects whose id is null.
    """

    findings: list[Finding] = field(default_factory=list)
    intact: int = 0
    rows: int = 0
    bytes: int = 0
    reject_reasons: Counter[str] = field(default_factory=Counter)
    rejects_without_id: int = 0

    def __iadd__(self, other: FileTotals) -> FileTotals:
        for name in FileTotals.__annotations__:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


@ray.remote(num_cpus=LIGHT_CPUS)
def read_outputs(
    output: Location, files: Sequence[tuple[int, OutputFile]], id_column: str, metadata: dict[str, str], partitions: int
) -> tuple[Any, ...]:
    """Check numbered files, which all have these entries of metadata.

    Returns:
        Their FileTotals, then the rows with an id (ID_ROW) of each partition.
    """
    totals = FileTotals()
    partitioned: list[list[IdRows]] = [[np.empty(0, ID_ROW)] for _ in range(partitions)]
    for number, file in files:
        with memory_limit(file.path):
            rows = np.concatenate([np.empty(0, ID_ROW), *_FileCheck(number, file, id_column, metadata, totals).run(output)])
        for pieces, piece in zip(partitioned, partition_rows(rows, partitions), strict=True):
            pieces.append(piece)
    return totals, *(np.concatenate(pieces) for pieces in partitioned)


@dataclass
class _FileCheck:
    """The check of one file, which adds to ``totals``."""

    number: int
    file: OutputFile
    id_column: str
    metadata: dict[str, str]
    totals: FileTotals
    problems: list[str] = field(default_factory=list)

    def run(self, output: Location) -> Iterator[IdRows]:
        """Check the file and yield its rows with an id; of a damaged file, those that can be read."""
        file, totals = self.file, self.totals
        try:
            with output.filesystem.open_input_file(output.child(file.path).path) as stream:
                self._check_content(stream)
                stream.seek(0)
                with pq.ParquetFile(stream) as parquet:
                    yield from self._check_rows(parquet)
        except (OSError, pa.ArrowException) as error:
            self.problems.append(f"cannot be read as Parquet: {describe_error(error)}")
        if not self.problems:
            totals.intact, totals.rows, totals.bytes = totals.intact + 1, totals.rows + file.rows, totals.bytes + file.bytes
        totals.findings += [Finding(file.path, problem) for problem in self.problems]

    def _check_content(self, stream: pa.NativeFile) -> None:
        size = stream.size()
        sha256 = hashlib.sha256()
        while piece := stream.read(_PIECE_BYTES):
            sha256.update(piece)
        if size != self.file.bytes:
            self.problems.append(f"has {size:,} bytes, but the manifest says {self.file.bytes:,}")
        if sha256.hexdigest() != self.file.sha256:
            self.problems.append("SHA-256 differs from the manifest: the content has changed")

    def _check_rows(self, parquet: pq.ParquetFile) -> Iterator[IdRows]:
        rows, schema = parquet.metadata.num_rows, parquet.schema_arrow
        if rows != self.file.rows:
            self.problems.append(f"has {rows:,} rows, but the manifest says {self.file.rows:,}")
        metadata = {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}
        if any(metadata.get(key) != value for key, value in self.metadata.items()):
            self.problems.append("its metadata names another run or model")
        is_rejects = self.file.path.startswith(f"{REJECTS}/")
        columns = [self.id_column, *(["reason"] if is_rejects else [])]
        if missing := [name for name in columns if name not in schema.names]:
            self.problems.append(f"has no column {missing[0]!r}")
            return
        row = without_id = 0
        for batch in parquet.iter_batches(BATCH_ROWS, columns=columns, use_threads=False):
            table = pa.Table.from_batches([batch])
            ids = table[self.id_column]
            has_id = ids.is_valid().to_numpy()
            addresses = row_addresses(self.number, row, len(table))
            row += len(table)
            if is_rejects:
                addresses |= self._add_rejects(reasons := table["reason"].to_pylist(), has_id)
                without_id += sum(not has and why != RejectReason.NULL_ID for has, why in zip(has_id, reasons, strict=True))
            else:
                without_id += int((~has_id).sum())
            yield id_rows(ids, addresses)
        if without_id:
            self.problems.append(f"has {without_id:,} rows without an id")

    def _add_rejects(self, reasons: Sequence[Any], has_id: Any) -> Any:
        """Count rejects; return DUPLICATE_BIT for those of a duplicate id [N], else 0."""
        self.totals.reject_reasons.update(str(reason) for reason in reasons)
        self.totals.rejects_without_id += int((~has_id).sum())
        return np.array([DUPLICATE_BIT if why == RejectReason.DUPLICATE_ID else 0 for why in reasons], np.uint64)
