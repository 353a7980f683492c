"""Iceberg tables, in any catalog that PyIceberg knows.

Documents are read at a snapshot, by Ray Data. Summaries are written by Ray Data's upsert to a branch, which readers do not see,
and which one commit then makes the table's main line: if that has not moved since, and with the mark among the table's
properties. Ray Data alone would write to a table as it finds it, an older run over a newer one.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import ray.data
import ray.exceptions
from ray.data import SaveMode
from ray.data._internal.datasource.iceberg_datasink import IcebergDatasink

from pipeline import cluster
from pipeline.config.tables import DeliverOutput, FetchInput, TableSection
from pipeline.errors import UserError, describe_error
from pipeline.tables.base import OneMark, Summaries, Watermark, require_module
from pipeline.tables.ray_source import RaySource
from pipeline.tables.schema import align_schema, document_schema

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table


@contextmanager
def source(options: FetchInput) -> Iterator[RaySource]:
    """The documents of a table's snapshot, the latest one unless another is named."""
    table = _open(options, "--input")
    if table is None:
        raise UserError(f"the catalog {options.catalog!r} has no table {options.table}; set --input.table")
    found = table.current_snapshot() if options.snapshot is None else table.snapshot_by_id(options.snapshot)
    if found is None:
        which = "no snapshot yet" if options.snapshot is None else f"no snapshot {options.snapshot}"
        raise UserError(f"{options.table} has {which}; set --input.snapshot to one that it has, or write to it first")
    scan = table.scan(snapshot_id=found.snapshot_id)
    schema = document_schema(scan.projection().as_arrow(), options)
    try:
        rows = None if options.filter else scan.count()
    except Exception as error:  # what its files' storage raises, or of what PyIceberg does not read: deletes by equality
        raise UserError(f"cannot read the Iceberg table {options.table}: {describe_error(error)}") from None
    yield RaySource(
        str(found.snapshot_id),
        schema,
        rows,
        options.filter,
        lambda: ray.data.read_iceberg(
            table_identifier=options.table, snapshot_id=found.snapshot_id, catalog_kwargs=_catalog_options(options)
        ),
    )


@contextmanager
def sink(options: DeliverOutput) -> Iterator[IcebergSink]:
    """A table that summaries are delivered to."""
    yield IcebergSink(options)


class IcebergSink(OneMark):
    """See store.Sink."""

    keeps_all = False

    def __init__(self, options: DeliverOutput) -> None:
        self._options = options
        self._key, self._branches = f"nightshift.{options.name}", f"nightshift-{options.name}-"
        self._table = _open(options, "--output")
        said = self._table.properties.get(self._key) if self._table else None
        self._mark = Watermark.model_validate_json(said) if said else None

    def deliver(self, summaries: Summaries, mark: Watermark) -> bool:
        """Bring the rows and the mark into the table, in one commit; False where another writer was faster."""
        from pyiceberg.exceptions import CommitFailedException

        table = self._table or _create(self._options, summaries.schema)
        schema = align_schema(summaries.schema, table.schema().as_arrow(), self._options.table)
        start = _main(table)
        branch = f"{self._branches}{uuid.uuid4().hex[:12]}"
        try:
            if table.current_snapshot() is None:  # a branch begins at a snapshot
                table.append(table.schema().as_arrow().empty_table())
                start = _main(table)
            table.manage_snapshots().create_branch(start, branch).commit()
            self._upsert(summaries, schema, branch, {self._key: mark.model_dump_json()})
            head = table.refresh().snapshot_by_name(branch)
            if head is None or head.parent_snapshot_id != start or _main(table) != start:
                return False
            self._publish(table, head.snapshot_id, mark)
        except Exception as error:  # of which kind hangs on the step: another delivery that is done removes this one's branch
            if isinstance(error, CommitFailedException) or self._has_moved(table, start):
                return False
            if isinstance(error, UserError):
                raise
            raise UserError(f"cannot write the Iceberg table {self._options.table}: {describe_error(error)}") from None
        return True

    @staticmethod
    def _has_moved(table: Any, start: int) -> bool:
        try:
            return _main(table.refresh()) != start
        except Exception:  # the catalog does not answer: what was raised before says why
            return False

    def _upsert(self, summaries: Summaries, schema: pa.Schema, branch: str, properties: dict[str, str]) -> None:
        cluster.connect()
        try:
            # One task reads, in order, since of each id the latest is to be found; those that write are many.
            rows = ray.data.range(1, override_num_blocks=1).map_batches(
                lambda _: (pa.Table.from_batches([batch]) for batch in summaries.batches(schema))
            )
            rows.write_datasink(
                _BranchDatasink(
                    self._options.table,
                    catalog_kwargs=_catalog_options(self._options),
                    snapshot_properties=properties,
                    mode=SaveMode.UPSERT,
                    upsert_kwargs={"join_cols": [summaries.id_column], "branch": branch},
                )
            )
        except ray.exceptions.RayError as error:
            raise cluster.to_user_error(error) from None

    def _publish(self, table: Table, head: int, mark: Watermark) -> None:
        """Make a branch's head the table's, if that is still where it was, and remove what was left by deliveries cut off."""
        from pyiceberg.table.update.snapshot import ManageSnapshots

        with table.transaction() as transaction:
            # The first of these says what must be so that all are done: the main line is where it was.
            ManageSnapshots(transaction).set_current_snapshot(snapshot_id=head)
            transaction.set_properties({self._key: mark.model_dump_json()})
            for branch in [name for name in table.refs() if name.startswith(self._branches)]:
                ManageSnapshots(transaction).remove_branch(branch).commit()


class _BranchDatasink(IcebergDatasink):
    """Ray Data's, which writes into a folder of the branch's own.

    The rows of a file that stay it writes to a file whose name hangs on that one alone (as of 2.60): two deliveries at once
    would write over each other's, and so over what one of them has published.
    """

    def _reload_table(self) -> None:
        super()._reload_table()
        metadata = self._table_metadata
        data = metadata.properties.get("write.data.path") or f"{metadata.location.rstrip('/')}/data"
        properties = {**metadata.properties, "write.data.path": f"{data.rstrip('/')}/{self._upsert_kwargs['branch']}"}
        self._table_metadata = metadata.model_copy(update={"properties": properties})


def _main(table: Table) -> int:
    """The table's current snapshot."""
    snapshot = table.current_snapshot()
    return snapshot.snapshot_id if snapshot else 0


def _catalog_options(options: TableSection) -> dict[str, Any]:
    return {"name": options.catalog, **options.catalog_properties}


def _catalog(options: TableSection, option: str) -> Catalog:
    catalogs = require_module("pyiceberg.catalog", "iceberg")
    try:
        catalog: Catalog = catalogs.load_catalog(options.catalog, **options.catalog_properties)
        return catalog
    except Exception as error:  # of each kind of catalog's own library; their words may have what connects to it
        raise UserError(
            f"cannot open the Iceberg catalog {options.catalog!r} ({type(error).__name__}); set {option}.catalog_properties, "
            "or the catalog in .pyiceberg.yaml"
        ) from None


def _open(options: TableSection, option: str) -> Table | None:
    """None where there is no such table."""
    catalog = _catalog(options, option)
    from pyiceberg.exceptions import NoSuchNamespaceError, NoSuchTableError

    if "." not in options.table:
        raise UserError(f"{option}.table {options.table!r} is no name of an Iceberg table; it has the form NAMESPACE.TABLE")
    try:
        return catalog.load_table(options.table)
    except (NoSuchTableError, NoSuchNamespaceError):
        return None
    except Exception as error:
        raise UserError(
            f"cannot open the Iceberg table {options.table} ({type(error).__name__}: {describe_error(error)})"
        ) from None


def _create(options: DeliverOutput, schema: pa.Schema) -> Table:
    catalog = _catalog(options, "--output")
    try:
        catalog.create_namespace_if_not_exists(options.table.rpartition(".")[0])
        return catalog.create_table_if_not_exists(options.table, schema)
    except Exception as error:
        raise UserError(
            f"cannot create the Iceberg table {options.table} ({type(error).__name__}: {describe_error(error)})"
        ) from None
