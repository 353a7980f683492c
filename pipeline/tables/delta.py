"""Delta tables.

Documents are read at a version, by Ray Data. Summaries come by a MERGE, of which Ray Data has none as of 2.60: delta-rs does it
in one commit, and the mark is a transaction of an application's, as the protocol has it, in that same commit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import ray.data

from pipeline.config.tables import DeliverOutput, FetchInput, TableSection
from pipeline.errors import UserError, describe_error
from pipeline.io.location import open_location
from pipeline.tables.base import Summaries, Watermark, require_module
from pipeline.tables.ray_source import RaySource
from pipeline.tables.schema import align_schema, document_schema


@contextmanager
def source(options: FetchInput) -> Iterator[RaySource]:
    """The documents of a table's version, the latest one unless another is named."""
    table = _open(options, options.snapshot)
    if table is None:
        raise UserError(f"there is no Delta table at {options.table}; set --input.table")
    uri = _uri(options)
    version = table.version()
    try:
        files = table.to_pyarrow_dataset()
        rows = None if options.filter else files.count_rows()
    except Exception as error:  # files were vacuumed, or have what is not read: deletion vectors, mapped columns
        raise UserError(f"cannot read the Delta table {options.table}: {describe_error(error)}") from None
    schema = document_schema(files.schema, options)
    # Of a table that was removed and made anew, versions count from 0 again.
    name = f"{version} of {table.metadata().id}"
    yield RaySource(name, schema, rows, options.filter, lambda: ray.data.read_delta(uri, version=version))


@contextmanager
def sink(options: DeliverOutput) -> Iterator[DeltaSink]:
    """A table that summaries are delivered to."""
    yield DeltaSink(options)


class DeltaSink:
    """See store.Sink."""

    keeps_all = False

    def __init__(self, options: DeliverOutput) -> None:
        self._options = options
        self._application = f"nightshift.{options.name}"
        self._table = _open(options)

    @property
    def sequence(self) -> int:
        """That of the last delivery's mark; 0 if there was none under this name."""
        return (self._table.transaction_version(self._application) or 0) if self._table else 0

    def remembers(self, mark: Watermark) -> bool:
        """Whether this is the last delivery's mark."""
        return bool(self._table and self._table.transaction_version(self._delivery(mark)) == mark.sequence)

    def deliver(self, summaries: Summaries, mark: Watermark) -> bool:
        """Bring the rows and the mark into the table, in one commit; False where another writer was faster."""
        from deltalake import CommitProperties, DeltaTable, Transaction
        from deltalake.exceptions import CommitFailedError, DeltaError

        name = self._options.table
        try:
            table = self._table or DeltaTable.create(_uri(self._options), summaries.schema, mode="error")
        except (DeltaError, OSError) as error:
            if _open(self._options):  # another delivery's
                return False
            raise UserError(f"cannot create the Delta table {name}: {describe_error(error)}") from None
        there = pa.schema(table.schema().to_arrow())
        schema = align_schema(summaries.schema, there, name)
        key, *others = (f'"{column}"' for column in schema.names)
        marks = [Transaction(app, mark.sequence) for app in (self._application, self._delivery(mark))]
        properties = CommitProperties(
            # No second try over what another writer committed: that may be a delivery.
            max_commit_retries=0,
            app_transactions=marks,
            custom_metadata={self._application: mark.model_dump_json()},
        )
        rows = pa.RecordBatchReader.from_batches(schema, summaries.batches(schema))
        merge = table.merge(
            rows, f"target.{key} = source.{key}", "source", "target", commit_properties=properties, error_on_type_mismatch=False
        )
        values = {column: f"source.{column}" for column in (key, *others)}
        try:
            merge.when_matched_update(values).when_not_matched_insert(values).execute()
        except CommitFailedError:
            return False
        except (DeltaError, OSError) as error:
            raise UserError(f"cannot write the Delta table {name}: {describe_error(error)}") from None
        return True

    def _delivery(self, mark: Watermark) -> str:
        return f"{self._application}.{hashlib.sha256(mark.model_dump_json().encode()).hexdigest()[:32]}"


def _uri(options: TableSection) -> str:
    """Of the table; of a local one the whole path."""
    option = "--input.table" if isinstance(options, FetchInput) else "--output.table"
    return options.table if "://" in options.table else open_location(options.table, option).path


def _open(options: TableSection, version: int | None = None) -> Any:
    """None where there is no table."""
    delta = require_module("deltalake", "delta")
    try:
        if not delta.DeltaTable.is_deltatable(_uri(options)):
            return None
        return delta.DeltaTable(_uri(options), version=version)
    except UserError:
        raise
    except Exception as error:
        of = "" if version is None else f" at version {version}"
        raise UserError(f"cannot open the Delta table {options.table}{of}: {describe_error(error)}") from None
