"""Iceberg tables, in any catalog that PyIceberg supports.

Ray Data reads the documents of one snapshot. Its upsert writes the summaries to a branch, which readers do not see. One commit
then makes the branch the table's current state and records the watermark in the table's properties, provided that the table has
not changed meanwhile. Ray Data's upsert alone would let an older run overwrite a newer one.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import pyarrow as pa
import ray.data
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import CommitFailedException, NoSuchNamespaceError, NoSuchTableError
from pyiceberg.table import Table
from pyiceberg.table.update.snapshot import ManageSnapshots
from ray.data import SaveMode
from ray.data._internal.datasource.iceberg_datasink import IcebergDatasink

from pipeline import cluster
from pipeline.config.tables import DeliverOutput, FetchInput, TableSection
from pipeline.errors import UserError, describe_error
from pipeline.tables.base import Sink, Summaries, Watermark
from pipeline.tables.ray_source import RaySource
from pipeline.tables.schema import align_schema, document_schema


@contextmanager
def source(options: FetchInput) -> Iterator[RaySource]:
    """Open the documents of one snapshot of a table, by default the latest."""
    table = _open(options, "--input")
    if table is None:
        raise UserError(f"the catalog {options.catalog!r} has no table {options.table}; set --input.table")
    snapshot = table.current_snapshot() if options.snapshot is None else table.snapshot_by_id(options.snapshot)
    if snapshot is None:
        which = "no snapshot yet; write to it first" if options.snapshot is None else f"no snapshot {options.snapshot}"
        raise UserError(f"{options.table} has {which}; set --input.snapshot to one that it has")
    snapshot_id = snapshot.snapshot_id
    scan = table.scan(snapshot_id=snapshot_id)
    schema = document_schema(scan.projection().as_arrow(), options)
    try:
        rows = None if options.filter else scan.count()
    except Exception as error:  # an error of the storage, or a feature that PyIceberg cannot read: equality deletes
        raise UserError(f"cannot read the Iceberg table {options.table}: {describe_error(error)}") from None
    yield RaySource(
        snapshot=str(snapshot_id),
        schema=schema,
        rows=rows,
        filter=options.filter,
        open_dataset=lambda: ray.data.read_iceberg(
            table_identifier=options.table, snapshot_id=snapshot_id, catalog_kwargs=_catalog_options(options)
        ),
    )


def sink(options: DeliverOutput) -> AbstractContextManager[IcebergSink]:
    return nullcontext(IcebergSink(options))


class IcebergSink(Sink):
    def __init__(self, options: DeliverOutput) -> None:
        self._options = options
        self._property, self._branch_prefix = f"nightshift.{options.name}", f"nightshift-{options.name}-"
        self._table = _open(options, "--output")
        if self._table and (value := self._table.properties.get(self._property)):
            self.watermark = Watermark.model_validate_json(value)

    def deliver(self, summaries: Summaries, watermark: Watermark) -> bool:
        """Write the rows to a branch and commit it with the watermark; False if another writer was faster."""
        table = self._table or _create(self._options, summaries.schema)
        schema = align_schema(summaries.schema, table.schema().as_arrow(), self._options.table)
        start = _current_snapshot_id(table)
        branch = f"{self._branch_prefix}{uuid.uuid4().hex[:12]}"
        try:
            if table.current_snapshot() is None:  # a branch needs a snapshot to start from
                table.append(table.schema().as_arrow().empty_table())
                start = _current_snapshot_id(table)
            table.manage_snapshots().create_branch(start, branch).commit()
            self._upsert(summaries, schema, branch, {self._property: watermark.model_dump_json()})
            head = table.refresh().snapshot_by_name(branch)
            if head is None or head.parent_snapshot_id != start or _current_snapshot_id(table) != start:
                return False
            self._commit_branch(table, head.snapshot_id, watermark)
        except Exception as error:  # any type: another delivery that finishes first removes this one's branch
            if isinstance(error, CommitFailedException) or _has_changed(table, start):
                return False
            if isinstance(error, UserError):
                raise
            raise UserError(f"cannot write the Iceberg table {self._options.table}: {describe_error(error)}") from None
        return True

    def _upsert(self, summaries: Summaries, schema: pa.Schema, branch: str, properties: dict[str, str]) -> None:
        cluster.connect()
        # One task reads all runs in order, to find the latest summary of each id. Many tasks write.
        rows = ray.data.range(1, override_num_blocks=1).map_batches(
            lambda _: (pa.Table.from_batches([batch]) for batch in summaries.batches(schema))
        )
        datasink = _BranchDatasink(
            self._options.table,
            catalog_kwargs=_catalog_options(self._options),
            snapshot_properties=properties,
            mode=SaveMode.UPSERT,
            upsert_kwargs={"join_cols": [summaries.id_column], "branch": branch},
        )
        cluster.translate_errors(lambda: rows.write_datasink(datasink))

    def _commit_branch(self, table: Table, head: int, watermark: Watermark) -> None:
        """Make a branch's head the current snapshot, and remove the branches that killed deliveries have left."""
        with table.transaction() as transaction:
            # Comes first: it makes the whole transaction depend on the current snapshot being unchanged.
            ManageSnapshots(transaction).set_current_snapshot(snapshot_id=head)
            transaction.set_properties({self._property: watermark.model_dump_json()})
            for branch in [name for name in table.refs() if name.startswith(self._branch_prefix)]:
                ManageSnapshots(transaction).remove_branch(branch).commit()


class _BranchDatasink(IcebergDatasink):
    """Ray Data's sink, writing its files into a folder of the branch's own.

    As of 2.60, Ray Data names a rewritten file after the original file alone. Two deliveries at the same time would overwrite
    each other's files, even those that one of them has already committed.
    """

    def _reload_table(self) -> None:
        super()._reload_table()
        metadata = self._table_metadata
        data = metadata.properties.get("write.data.path") or f"{metadata.location.rstrip('/')}/data"
        properties = {**metadata.properties, "write.data.path": f"{data.rstrip('/')}/{self._upsert_kwargs['branch']}"}
        self._table_metadata = metadata.model_copy(update={"properties": properties})


def _current_snapshot_id(table: Table) -> int:
    snapshot = table.current_snapshot()
    return snapshot.snapshot_id if snapshot else 0


def _has_changed(table: Table, start: int) -> bool:
    try:
        return _current_snapshot_id(table.refresh()) != start
    except Exception:  # the catalog does not answer; the caller's own error says more
        return False


def _catalog_options(options: TableSection) -> dict[str, Any]:
    return {"name": options.catalog, **options.catalog_properties}


def _open_catalog(options: TableSection, section: str) -> Catalog:
    try:
        return load_catalog(options.catalog, **options.catalog_properties)
    except Exception as error:  # each type of catalog has errors of its own; their messages may contain passwords
        raise UserError(
            f"cannot open the Iceberg catalog {options.catalog!r} ({type(error).__name__}); set {section}.catalog_properties, "
            "or configure the catalog in .pyiceberg.yaml"
        ) from None


def _open(options: TableSection, section: str) -> Table | None:
    """Open a table; None if it does not exist."""
    catalog = _open_catalog(options, section)
    if "." not in options.table:
        raise UserError(f"{section}.table {options.table!r} is not the name of an Iceberg table; set it to NAMESPACE.TABLE")
    try:
        return catalog.load_table(options.table)
    except (NoSuchTableError, NoSuchNamespaceError):
        return None
    except Exception as error:
        raise UserError(
            f"cannot open the Iceberg table {options.table} ({type(error).__name__}: {describe_error(error)})"
        ) from None


def _create(options: DeliverOutput, schema: pa.Schema) -> Table:
    catalog = _open_catalog(options, "--output")
    try:
        catalog.create_namespace_if_not_exists(options.table.rpartition(".")[0])
        return catalog.create_table_if_not_exists(options.table, schema)
    except Exception as error:
        raise UserError(
            f"cannot create the Iceberg table {options.table} ({type(error).__name__}: {describe_error(error)})"
        ) from None
