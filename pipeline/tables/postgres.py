"""PostgreSQL tables.

Not by Ray Data's own reader and writer (as of 2.60): each of its readers has a transaction, and so a moment, of its own and
holds all of its rows, whose types it guesses; each of its writers commits alone, and does its work again where it fails.
Here one transaction streams the documents of one moment, and another brings summaries, by COPY to a table of its own and from
there to the one that is read, together with the mark.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.tables import DeliverOutput, FetchInput, TableSection
from pipeline.data.arrow import to_values
from pipeline.errors import UserError
from pipeline.io.location import Location
from pipeline.tables.base import OneMark, Summaries, Watermark, require_module
from pipeline.tables.schema import align_schema, chosen, document_schema, rows_to_table

if TYPE_CHECKING:
    import psycopg
    from psycopg import sql

_ROWS_AT_A_TIME = 256
"""Of a cursor: they are all in memory, however long their texts."""
_BYTES_OF_A_GROUP, _ROWS_OF_A_FILE = 32 * 2**20, 100_000
_MARKS = "nightshift_deliveries"
_SECRETS = {"password", "sslpassword", "oauth_client_secret", "scram_client_key", "scram_server_key"}
"""Parameters of libpq."""
_MOST_DIGITS = 38
"""Of a decimal in Parquet as all read it."""
_TEXTS = {"text", "varchar", "bpchar", "name", "uuid", "json", "jsonb"}
"""Read as text. An enumeration's name is its own: a view can cast it."""
_KINDS = {
    "int2": pa.int32(),
    "int4": pa.int32(),
    "int8": pa.int64(),
    "float4": pa.float32(),
    "float8": pa.float64(),
    "bool": pa.bool_(),
    "bytea": pa.binary(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", "UTC"),
}
_NAMES = {
    pa.string(): "text",
    pa.int32(): "integer",
    pa.int64(): "bigint",
    pa.float32(): "real",
    pa.float64(): "double precision",
    pa.bool_(): "boolean",
    pa.binary(): "bytea",
    pa.date32(): "date",
    pa.timestamp("us"): "timestamp",
    pa.timestamp("us", "UTC"): "timestamptz",
}


@contextmanager
def source(options: FetchInput) -> Iterator[PostgresSource]:
    """The documents of a table or a view, as of one moment."""
    if options.snapshot is not None:
        raise UserError("PostgreSQL keeps no earlier snapshots; take --input.snapshot away")
    with _connected(options, "--input") as connection:
        yield PostgresSource(connection, options)


class PostgresSource:
    """See store.Source. The snapshot changes with each transaction that anybody commits in the server."""

    def __init__(self, connection: psycopg.Connection[Any], options: FetchInput) -> None:
        import psycopg

        self._connection, self._options = connection, options
        connection.isolation_level, connection.read_only = psycopg.IsolationLevel.REPEATABLE_READ, True
        with _explained("read", options.table):
            columns = _columns(connection, options.table)
        if not columns:
            raise UserError(f"there is no table {options.table} that can be read; set --input.table")
        wanted = set(chosen(options))
        self.schema = document_schema(
            pa.schema([(name, _kind(name, columns[name], options) if name in wanted else pa.null()) for name in columns]),
            options,
        )
        self._as_text = {name for name in wanted if columns[name] in _TEXTS}
        where = (connection.info.host, connection.info.port, connection.info.dbname)
        with _explained("read", options.table):
            [moment] = connection.execute("SELECT pg_current_snapshot()::text").fetchone() or [None]
        self.snapshot = hashlib.sha256(json.dumps([*where, moment]).encode()).hexdigest()[:16]

    def write(self, folder: Location) -> int | None:
        """Write the documents as Parquet files; how many there are."""
        from psycopg import sql

        rows = part = 0
        query = sql.SQL("SELECT {} FROM {}").format(
            sql.SQL(", ").join(self._selected(name) for name in self.schema.names), _table(self._options.table)
        )
        if self._options.filter:
            query += sql.SQL(" WHERE ({})").format(sql.SQL(self._options.filter))
        folder.make_folder()
        with _explained("read", self._options.table), self._connection.cursor("nightshift_fetch") as cursor:
            cursor.itersize = _ROWS_AT_A_TIME
            cursor.execute(query)
            tables = self._groups(cursor)
            while (group := next(tables, None)) is not None:
                path = folder.child(f"part-{part:05}.parquet").path
                with pq.ParquetWriter(path, self.schema, filesystem=folder.filesystem, compression="zstd") as file:
                    in_file = 0
                    while group is not None:
                        file.write_table(group)
                        in_file += len(group)
                        group = next(tables, None) if in_file < _ROWS_OF_A_FILE else None
                rows, part = rows + in_file, part + 1
        return rows

    def _groups(self, cursor: psycopg.ServerCursor[Any]) -> Iterator[pa.Table]:
        """Rows of a row group each."""
        some: list[pa.Table] = []
        while found := cursor.fetchmany(_ROWS_AT_A_TIME):
            columns = zip(*found, strict=True)
            some.append(pa.table([rows_to_table(c, f) for c, f in zip(columns, self.schema, strict=True)], self.schema))
            if sum(table.nbytes for table in some) >= _BYTES_OF_A_GROUP:
                yield pa.concat_tables(some)
                some = []
        if some:
            yield pa.concat_tables(some)

    def _selected(self, name: str) -> sql.Composable:
        from psycopg import sql

        return sql.SQL("{}::text").format(sql.Identifier(name)) if name in self._as_text else sql.Identifier(name)


@contextmanager
def sink(options: DeliverOutput) -> Iterator[PostgresSink]:
    """A table that summaries are delivered to, which no other delivery changes meanwhile."""
    with _connected(options, "--output") as connection:
        yield PostgresSink(connection, options)


class PostgresSink(OneMark):
    """See store.Sink. A delivery waits until another one of the same table is done."""

    keeps_all = False

    def __init__(self, connection: psycopg.Connection[Any], options: DeliverOutput) -> None:
        from psycopg import sql

        self._connection, self._options = connection, options
        self._table = _table(options.table)
        first, dot, rest = options.table.partition(".")
        self._name, schema = (rest, first) if dot else (first, "")
        self._marks = sql.Identifier(*filter(None, [schema]), _MARKS)
        self._mark: Watermark | None = None
        with _explained("write", options.table):
            # By its own name alone: with its schema or without, it is the same table.
            connection.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"{_MARKS} {self._name}"])
            self._has_marks = bool(_columns(connection, f"{schema}.{_MARKS}" if schema else _MARKS))
            if self._has_marks and _columns(connection, options.table):  # a mark outlives a table that is dropped
                query = sql.SQL("SELECT run_id, sequence, manifest_sha256 FROM {} WHERE table_name = %s AND name = %s")
                found = connection.execute(query.format(self._marks), [self._name, options.name]).fetchone()
                self._mark = Watermark(run_id=found[0], sequence=found[1], manifest_sha256=found[2]) if found else None

    def deliver(self, summaries: Summaries, mark: Watermark) -> bool:
        """Bring the rows and the mark into their tables, in one transaction."""
        from psycopg import sql

        schema, run = summaries.schema, self._connection.execute
        key = sql.Identifier(summaries.id_column)
        names = sql.SQL(", ").join(sql.Identifier(name) for name in schema.names)
        with _explained("write", self._options.table):
            there = _columns(self._connection, self._options.table)
            if there:
                self._check(schema, there)
            else:
                columns = [sql.SQL("{} {}").format(sql.Identifier(f.name), sql.SQL(_sql_kind(f))) for f in schema]
                run(sql.SQL("CREATE TABLE {} ({}, PRIMARY KEY ({}))").format(self._table, sql.SQL(", ").join(columns), key))
            # Of the table's own types, which may be wider than those of the summaries.
            run(
                sql.SQL("CREATE TEMP TABLE nightshift_staged ON COMMIT DROP AS SELECT {} FROM {} WITH NO DATA").format(
                    names, self._table
                )
            )
            with (
                self._connection.cursor() as cursor,
                cursor.copy(sql.SQL("COPY nightshift_staged ({}) FROM STDIN").format(names)) as copy,
            ):
                for batch in summaries.batches(schema):
                    for row in zip(*map(to_values, batch.columns), strict=True):
                        self._copy(copy, row)
            changes = [
                sql.SQL("{0} = EXCLUDED.{0}").format(sql.Identifier(name))
                for name in schema.names
                if name != summaries.id_column
            ]
            then = sql.SQL("UPDATE SET {}").format(sql.SQL(", ").join(changes)) if changes else sql.SQL("NOTHING")
            run(
                sql.SQL("INSERT INTO {} ({}) SELECT {} FROM nightshift_staged ON CONFLICT ({}) DO {}").format(
                    self._table, names, names, key, then
                )
            )
            self._remember(mark)
            self._connection.commit()
        return True

    def _copy(self, copy: psycopg.Copy, row: tuple[Any, ...]) -> None:
        import psycopg

        try:
            copy.write_row(row)
        except psycopg.DataError as error:  # a text with NUL, which PostgreSQL has none of
            raise UserError(f"cannot write {self._options.table}: {_words(error)}, as {row[0]!r} has") from None

    def _check(self, schema: pa.Schema, there: dict[str, str]) -> None:
        kinds = {**_KINDS, **dict.fromkeys(_TEXTS, pa.string())}
        # What has no type here, an enumeration or a decimal, is taken by the server from its text.
        table = [(name, kinds.get(kind)) for name, kind in there.items()]
        align_schema(
            schema,
            pa.schema([(n, k or (schema.field(n).type if n in schema.names else pa.null())) for n, k in table]),
            self._options.table,
        )

    def _remember(self, mark: Watermark) -> None:
        from psycopg import sql

        if not self._has_marks:  # to create what is there needs a right, too
            self._connection.execute(
                sql.SQL(
                    "CREATE TABLE IF NOT EXISTS {} (table_name text, name text, run_id text NOT NULL, "
                    "sequence bigint NOT NULL, manifest_sha256 text, delivered_at timestamptz NOT NULL DEFAULT now(), "
                    "PRIMARY KEY (table_name, name))"
                ).format(self._marks)
            )
        self._connection.execute(
            sql.SQL(
                "INSERT INTO {} (table_name, name, run_id, sequence, manifest_sha256) VALUES (%s, %s, %s, %s, %s) "
                "ON CONFLICT (table_name, name) DO UPDATE SET run_id = EXCLUDED.run_id, sequence = EXCLUDED.sequence, "
                "manifest_sha256 = EXCLUDED.manifest_sha256, delivered_at = EXCLUDED.delivered_at"
            ).format(self._marks),
            [self._name, self._options.name, mark.run_id, mark.sequence, mark.manifest_sha256],
        )


# The server


@contextmanager
def _connected(options: TableSection, option: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection; what is not committed by the end is undone."""
    psycopg = require_module("psycopg", "postgres")
    try:
        said = psycopg.conninfo.conninfo_to_dict(options.connection)
    except psycopg.ProgrammingError:  # whose words have the string, and what may stand in it
        raise UserError(f"{option}.connection is no URI postgresql://… and not of the form 'host=… dbname=…'") from None
    if _SECRETS & said.keys():
        raise UserError(
            f"{option}.connection has a password or another secret in it; take it out, and set PGPASSWORD, .pgpass, a service "
            f"or {option}.password_env"
        )
    if options.password_env:
        if options.password_env not in os.environ:
            raise UserError(f"there is no environment variable {options.password_env}; set {option}.password_env")
        said["password"] = os.environ[options.password_env]
    try:
        connection = psycopg.connect(**said)
    except psycopg.Error as error:
        raise UserError(f"cannot connect to PostgreSQL: {_words(error)}; set {option}.connection") from None
    try:
        yield connection
    finally:
        connection.close()


@contextmanager
def _explained(verb: str, table: str) -> Iterator[None]:
    """Tell the server's errors in its own words."""
    psycopg = require_module("psycopg", "postgres")
    try:
        yield
    except psycopg.Error as error:
        raise UserError(f"cannot {verb} {table}: {_words(error)}") from None


def _words(error: psycopg.Error) -> str:
    message = error.diag.message_primary or str(error)
    return " ".join(f"{message} {error.diag.message_detail or ''}".split())


def _table(name: str) -> sql.Identifier:
    from psycopg import sql

    return sql.Identifier(*name.split(".", 1))


def _columns(connection: psycopg.Connection[Any], table: str) -> dict[str, str]:
    """The types of a table's columns, as the server names them; none if there is no such table. numeric(p, s) with p and s."""
    name = _table(table).as_string(connection)
    rows = connection.execute(
        "SELECT attname, CASE WHEN typname = 'numeric' THEN format_type(atttypid, atttypmod) ELSE typname END "
        "FROM pg_attribute JOIN pg_type ON pg_type.oid = atttypid "
        "WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped ORDER BY attnum",
        [name],
    )
    return dict(rows.fetchall())


def _kind(column: str, kind: str, options: FetchInput) -> pa.DataType:
    """The type in Arrow."""
    if kind in _TEXTS:
        return pa.string()
    if kind.startswith("numeric("):
        digits, scale = (int(number) for number in kind[len("numeric(") : -1].split(","))
        if digits <= _MOST_DIGITS and 0 <= scale <= digits:
            return pa.decimal128(digits, scale)
    if kind not in _KINDS:
        raise UserError(
            f"column {column!r} of {options.table} is {kind}, of which Parquet has no equal; make a view that casts it, or "
            "leave it out"
        )
    return _KINDS[kind]


def _sql_kind(field: pa.Field) -> str:
    """The type in SQL. Raises UserError for what was not a type of all stores."""
    kind = field.type
    if pa.types.is_list(kind):
        return f"{_sql_kind(field.with_type(kind.value_type))}[]"
    return f"numeric({kind.precision}, {kind.scale})" if pa.types.is_decimal(kind) else _NAMES[kind]
