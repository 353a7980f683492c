"""Delta tables.

Ray Data reads the documents of one version. As of 2.60 it has no MERGE, so delta-rs delivers the summaries: one commit holds
the rows and the watermark, which is an application transaction of the Delta protocol.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pyarrow as pa
import ray.data
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError

from pipeline.config.tables import DeliverOutput, FetchInput, TableSection
from pipeline.errors import UserError, describe_error
from pipeline.io.location import open_location
from pipeline.tables.base import Sink, Summaries, Watermark
from pipeline.tables.ray_source import RaySource
from pipeline.tables.schema import align_schema, document_schema


@contextmanager
def source(options: FetchInput) -> Iterator[RaySource]:
    """Open the documents of one version of a table, by default the latest."""
    table = _open(options, options.snapshot)
    if table is None:
        raise UserError(f"there is no Delta table at {options.table}; set --input.table")
    uri = _table_uri(options)
    version = table.version()
    try:
        files = table.to_pyarrow_dataset()
        rows = None if options.filter else files.count_rows()
    except Exception as error:  # vacuumed files, or a feature that delta-rs cannot read: deletion vectors, mapped columns
        raise UserError(f"cannot read the Delta table {options.table}: {describe_error(error)}") from None
    yield RaySource(
        snapshot=f"{version} of {table.metadata().id}",  # with the id: the versions of a re-created table start over at 0
        schema=document_schema(files.schema, options),
        rows=rows,
        filter=options.filter,
        open_dataset=lambda: ray.data.read_delta(uri, version=version),
    )


def sink(options: DeliverOutput) -> AbstractContextManager[DeltaSink]:
    return nullcontext(DeltaSink(options))


class DeltaSink(Sink):
    """A Delta table (see base.Sink).

    A Delta transaction holds a number, not a watermark. So each delivery commits two: one with the sequence number under the
    delivery's name, and one under the watermark's hash.
    """

    def __init__(self, options: DeliverOutput) -> None:
        self._options = options
        self._application = f"nightshift.{options.name}"
        self._table = _open(options)

    @property
    def sequence(self) -> int:
        return (self._table.transaction_version(self._application) or 0) if self._table else 0

    def is_at(self, watermark: Watermark) -> bool:
        return bool(self._table and self._table.transaction_version(self._hashed(watermark)) == watermark.sequence)

    def deliver(self, summaries: Summaries, watermark: Watermark) -> bool:
        name = self._options.table
        try:
            table = self._table or DeltaTable.create(_table_uri(self._options), summaries.schema, mode="error")
        except (DeltaError, OSError) as error:
            if _open(self._options):  # another delivery has created it
                return False
            raise UserError(f"cannot create the Delta table {name}: {describe_error(error)}") from None
        schema = align_schema(summaries.schema, pa.schema(table.schema().to_arrow()), name)
        properties = CommitProperties(
            max_commit_retries=0,  # a conflicting commit may be another delivery: do not retry over it
            app_transactions=[Transaction(app, watermark.sequence) for app in (self._application, self._hashed(watermark))],
            custom_metadata={self._application: watermark.model_dump_json()},
        )
        columns = [f'"{column}"' for column in schema.names]
        merge = table.merge(
            pa.RecordBatchReader.from_batches(schema, summaries.batches(schema)),
            predicate=f"target.{columns[0]} = source.{columns[0]}",
            source_alias="source",
            target_alias="target",
            commit_properties=properties,
            error_on_type_mismatch=False,
        )
        values = {column: f"source.{column}" for column in columns}
        try:
            merge.when_matched_update(values).when_not_matched_insert(values).execute()
        except CommitFailedError:
            return False
        except (DeltaError, OSError) as error:
            raise UserError(f"cannot write the Delta table {name}: {describe_error(error)}") from None
        return True

    def _hashed(self, watermark: Watermark) -> str:
        return f"{self._application}.{hashlib.sha256(watermark.model_dump_json().encode()).hexdigest()[:32]}"


def _table_uri(options: TableSection) -> str:
    """Return the table's URI; the absolute path of a local table."""
    option = "--input.table" if isinstance(options, FetchInput) else "--output.table"
    return options.table if "://" in options.table else open_location(options.table, option).path


def _open(options: TableSection, version: int | None = None) -> Any:
    """Open a table at a version; None if there is no table."""
    uri = _table_uri(options)
    try:
        return DeltaTable(uri, version=version) if DeltaTable.is_deltatable(uri) else None
    except Exception as error:
        at_version = "" if version is None else f" at version {version}"
        raise UserError(f"cannot open the Delta table {options.table}{at_version}: {describe_error(error)}") from None
