"""PostgreSQL tables, read and written in one transaction each.

Ray Data's own reader and writer do not fit (as of 2.60). Each of its read tasks has a transaction, and so a snapshot, of its
own, holds all its rows in memory and guesses their types. Each of its write tasks commits alone and repeats its work after an
error. Here, one transaction streams the documents of one moment. Another one copies the summaries to a temporary table, merges
them into the table and records the watermark in the table ``nightshift_deliveries``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Any

import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
from psycopg import sql

from pipeline.config.tables import DeliverOutput, FetchInput, TableSection
from pipeline.data.arrow import to_values
from pipeline.errors import UserError
from pipeline.io.location import Location
from pipeline.tables.base import Sink, Summaries, Watermark
from pipeline.tables.postgres_types import ARROW_TYPES, TEXT_TYPES, arrow_type, sql_type
from pipeline.tables.schema import align_schema, document_schema, requested_columns, to_column

Connection = psycopg.Connection[Any]

_FETCH_ROWS = 256
"""Rows that a cursor returns at a time. All of them are in memory, whatever the length of their texts."""

_ROW_GROUP_BYTES, _FILE_ROWS = 32 * 2**20, 100_000
_DELIVERIES = "nightshift_deliveries"
_SECRETS = {"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}
"""Parameters of libpq that hold secrets."""


@contextmanager
def source(options: FetchInput) -> Iterator[PostgresSource]:
    """Open the documents of a table or a view at this moment."""
    if options.snapshot is not None:
        raise UserError("PostgreSQL keeps no earlier snapshots; remove --input.snapshot")
    with _connect(options, "--input") as connection:
        yield PostgresSource(connection, options)


class PostgresSource:
    """A table or view as one transaction sees it (see base.Source).

    The name of the snapshot changes with every transaction that anybody commits on the server.
    """

    def __init__(self, connection: Connection, options: FetchInput) -> None:
        self._connection, self._options = connection, options
        connection.isolation_level, connection.read_only = psycopg.IsolationLevel.REPEATABLE_READ, True
        with _as_user_error("read", options.table):
            types = _column_types(connection, options.table)
            [moment] = connection.execute("SELECT pg_current_snapshot()::text").fetchone() or [None]
        if not types:
            raise UserError(f"there is no table {options.table}, or it cannot be read; set --input.table")
        names = set(requested_columns(options))
        fields = [(name, arrow_type(name, types[name], options) if name in names else pa.null()) for name in types]
        self.schema = document_schema(pa.schema(fields), options)
        self._cast_to_text = {name for name in names if types[name] in TEXT_TYPES}
        server = (connection.info.host, connection.info.port, connection.info.dbname)
        self.snapshot = hashlib.sha256(json.dumps([*server, moment]).encode()).hexdigest()[:16]

    def write(self, folder: Location) -> int:
        folder.make_folder()
        rows = number = 0
        with _as_user_error("read", self._options.table), self._connection.cursor("nightshift_fetch") as cursor:
            cursor.execute(self._query())
            groups = self._row_groups(cursor)
            for first in groups:
                path = folder.child(f"part-{number:05}.parquet").path
                with pq.ParquetWriter(path, self.schema, filesystem=folder.filesystem, compression="zstd") as file:
                    file_rows = 0
                    for group in chain([first], groups):
                        file.write_table(group)
                        file_rows += len(group)
                        if file_rows >= _FILE_ROWS:
                            break
                rows, number = rows + file_rows, number + 1
        return rows

    def _query(self) -> sql.Composed:
        columns = [sql.Identifier(name) + sql.SQL("::text" if name in self._cast_to_text else "") for name in self.schema.names]
        query = sql.SQL("SELECT {} FROM {}").format(sql.SQL(", ").join(columns), _identifier(self._options.table))
        if self._options.filter:
            query += sql.SQL(" WHERE ({})").format(sql.SQL(self._options.filter))
        return query

    def _row_groups(self, cursor: psycopg.ServerCursor[Any]) -> Iterator[pa.Table]:
        """Yield the rows in tables of about ``_ROW_GROUP_BYTES``."""
        tables: list[pa.Table] = []
        while rows := cursor.fetchmany(_FETCH_ROWS):
            columns = zip(*rows, strict=True)
            arrays = [to_column(values, field) for values, field in zip(columns, self.schema, strict=True)]
            tables.append(pa.table(arrays, self.schema))
            if sum(table.nbytes for table in tables) >= _ROW_GROUP_BYTES:
                yield pa.concat_tables(tables)
                tables = []
        if tables:
            yield pa.concat_tables(tables)


@contextmanager
def sink(options: DeliverOutput) -> Iterator[PostgresSink]:
    """Open a table that summaries are delivered to. Other deliveries to it wait."""
    with _connect(options, "--output") as connection:
        yield PostgresSink(connection, options)


class PostgresSink(Sink):
    """A PostgreSQL table (see base.Sink), locked against other deliveries until the connection closes."""

    def __init__(self, connection: Connection, options: DeliverOutput) -> None:
        self._connection, self._options = connection, options
        self._table = _identifier(options.table)
        *schema, self._name = options.table.split(".", 1)
        deliveries = ".".join([*schema, _DELIVERIES])
        self._deliveries = _identifier(deliveries)
        with _as_user_error("write", options.table):
            # The lock's name has no schema: the same table may be given with its schema or without.
            connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"{_DELIVERIES} {self._name}"])
            self._has_deliveries = bool(_column_types(connection, deliveries))
            self._types = _column_types(connection, options.table)
            if self._has_deliveries and self._types:  # a watermark outlives a table that is dropped
                query = sql.SQL("SELECT run_id, sequence, manifest_sha256 FROM {} WHERE table_name = %s AND name = %s")
                row = connection.execute(query.format(self._deliveries), [self._name, options.name]).fetchone()
                self.watermark = Watermark(run_id=row[0], sequence=row[1], manifest_sha256=row[2]) if row else None

    def deliver(self, summaries: Summaries, watermark: Watermark) -> bool:
        with _as_user_error("write", self._options.table):
            if self._types:
                self._check_columns(summaries.schema)
            else:
                self._create_table(summaries)
            self._stage(summaries)
            self._merge(summaries)
            self._save(watermark)
            self._connection.commit()
        return True

    def _check_columns(self, schema: pa.Schema) -> None:
        # A type without an equal in Arrow, such as an enumeration or a decimal, accepts any value that the server can parse.
        accepted = {name: schema.field(name).type if name in schema.names else pa.null() for name in self._types}
        fields = [(name, ARROW_TYPES.get(type_name, accepted[name])) for name, type_name in self._types.items()]
        align_schema(schema, pa.schema(fields), self._options.table)

    def _create_table(self, summaries: Summaries) -> None:
        columns = [sql.Identifier(field.name) + sql.SQL(f" {sql_type(field)}") for field in summaries.schema]
        query = sql.SQL("CREATE TABLE {} ({}, PRIMARY KEY ({}))")
        key = sql.Identifier(summaries.id_column)
        self._connection.execute(query.format(self._table, sql.SQL(", ").join(columns), key))

    def _stage(self, summaries: Summaries) -> None:
        """Copy the summaries to a temporary table with the table's own types, which may be wider."""
        names = _column_list(summaries.schema)
        create = sql.SQL("CREATE TEMP TABLE nightshift_staged ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA")
        self._connection.execute(create.format(names, self._table))
        copy_in = sql.SQL("COPY nightshift_staged ({}) FROM STDIN").format(names)
        with self._connection.cursor() as cursor, cursor.copy(copy_in) as copy:
            for batch in summaries.batches(summaries.schema):
                for row in zip(*map(to_values, batch.columns), strict=True):
                    try:
                        copy.write_row(row)
                    except psycopg.DataError as error:  # a text with NUL, which PostgreSQL cannot store
                        raise UserError(f"cannot write {row[0]!r} to {self._options.table}: {_message(error)}") from None

    def _merge(self, summaries: Summaries) -> None:
        key = summaries.id_column
        updates = [sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name)) for name in summaries.schema.names if name != key]
        action = sql.SQL("UPDATE SET {}").format(sql.SQL(", ").join(updates)) if updates else sql.SQL("NOTHING")
        query = sql.SQL("INSERT INTO {} ({}) SELECT {} FROM nightshift_staged ON CONFLICT ({}) DO {}")
        names = _column_list(summaries.schema)
        self._connection.execute(query.format(self._table, names, names, sql.Identifier(key), action))

    def _save(self, watermark: Watermark) -> None:
        if not self._has_deliveries:  # CREATE … IF NOT EXISTS needs the right to create even if the table exists
            create = sql.SQL(
                "CREATE TABLE IF NOT EXISTS {} (table_name text, name text, run_id text NOT NULL, "
                "sequence bigint NOT NULL, manifest_sha256 text, delivered_at timestamptz NOT NULL DEFAULT now(), "
                "PRIMARY KEY (table_name, name))"
            )
            self._connection.execute(create.format(self._deliveries))
        upsert = sql.SQL(
            "INSERT INTO {} (table_name, name, run_id, sequence, manifest_sha256) VALUES (%s, %s, %s, %s, %s) "
            "ON CONFLICT (table_name, name) DO UPDATE SET run_id = EXCLUDED.run_id, sequence = EXCLUDED.sequence, "
            "manifest_sha256 = EXCLUDED.manifest_sha256, delivered_at = EXCLUDED.delivered_at"
        )
        row = [self._name, self._options.name, watermark.run_id, watermark.sequence, watermark.manifest_sha256]
        self._connection.execute(upsert.format(self._deliveries), row)


@contextmanager
def _connect(options: TableSection, section: str) -> Iterator[Connection]:
    """Open a connection. Closing it rolls back what is not committed."""
    try:
        parameters = psycopg.conninfo.conninfo_to_dict(options.connection)
    except psycopg.ProgrammingError:  # its message repeats the string, which may contain a password
        raise UserError(
            f"{section}.connection is neither a URI nor a list of parameters; set it to 'postgresql://…' or 'host=… dbname=…'"
        ) from None
    if _SECRETS & parameters.keys():
        raise UserError(
            f"{section}.connection holds a password or another secret; remove it, and set PGPASSWORD, .pgpass, a service or "
            f"{section}.password_env"
        )
    if options.password_env:
        if options.password_env not in os.environ:
            raise UserError(f"the environment variable {options.password_env} is not set; set it, or {section}.password_env")
        parameters["password"] = os.environ[options.password_env]
    try:
        connection = psycopg.connect(**parameters)  # type: ignore[arg-type]
    except psycopg.Error as error:
        raise UserError(f"cannot connect to PostgreSQL: {_message(error)}; set {section}.connection") from None
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def _as_user_error(verb: str, table: str) -> Iterator[None]:
    """Raise UserError with the server's message for an error of the server."""
    try:
        yield
    except psycopg.Error as error:
        raise UserError(f"cannot {verb} {table}: {_message(error)}") from None


def _message(error: psycopg.Error) -> str:
    """Return the server's message in one line."""
    return " ".join(f"{error.diag.message_primary or str(error)} {error.diag.message_detail or ''}".split())


def _identifier(table: str) -> sql.Identifier:
    """Return the quoted name of a table, given as TABLE or SCHEMA.TABLE."""
    return sql.Identifier(*table.split(".", 1))


def _column_list(schema: pa.Schema) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, schema.names))


def _column_types(connection: Connection, table: str) -> dict[str, str]:
    """Return the server's names of a table's column types; a decimal's as numeric(p,s). Empty if there is no such table."""
    rows = connection.execute(
        "SELECT attname, CASE WHEN typname = 'numeric' THEN format_type(atttypid, atttypmod) ELSE typname END "
        "FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid "
        "WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        [_identifier(table).as_string(connection)],
    )
    return dict(rows.fetchall())
