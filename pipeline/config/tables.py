"""Options of jobs.fetch and jobs.deliver."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import JobConfig, Section
from pipeline.config.runs import RunsOutput
from pipeline.config.types import RunId


class TableSection(Section):
    """A table."""

    kind: Literal["iceberg", "delta", "jsonl", "postgres"] = Field(..., description="type of table")
    table: str = Field(
        ...,
        description="Iceberg: NAMESPACE.TABLE; PostgreSQL: [SCHEMA.]TABLE; Delta and JSON lines: the folder, a path or any URI",
    )
    catalog: str = Field("default", description="Iceberg: name of the catalog in .pyiceberg.yaml or PYICEBERG_CATALOG__NAME__…")
    catalog_properties: dict[str, str] = Field(
        {}, description='Iceberg: more catalog properties, such as \'{"uri": "sqlite:///c.db"}\'; no passwords'
    )
    connection: str = Field(
        "", description="PostgreSQL: libpq URI or 'host=… dbname=…' without a password; PGHOST and so on are also read"
    )
    password_env: str | None = Field(
        None,
        description="PostgreSQL: environment variable that holds the password; unset: PGPASSWORD, .pgpass or the service file",
    )


class FetchInput(TableSection):
    """Table to read documents from."""

    id_column: str = Field(
        "id", description="column of unique ids, string or integer; PostgreSQL: or uuid, which is fetched as text"
    )
    text_column: str = Field("text", description="column of texts")
    keep_columns: list[str] = Field([], description="other columns to fetch")
    filter: str | None = Field(
        None,
        description="fetch only matching rows; PostgreSQL: an SQL condition; others: a Ray Data expression such as "
        "n > 5 and lang == 'en'; unset: all rows",
    )
    snapshot: int | None = Field(None, description="Iceberg snapshot id or Delta version to read; unset: the latest")


class FetchOutput(Section):
    """Where to write the documents."""

    path: str = Field("documents", description="output folder, a path or any URI; use it as --input.path of jobs.summarize")


class DeliverInput(RunsOutput):
    """Summaries to deliver."""

    run_id: RunId | None = Field(None, description="deliver all runs up to this one; unset: up to the last finished run")
    columns: list[str] = Field([], description="columns to deliver in addition to the id; empty: all columns")


class DeliverOutput(TableSection):
    """Table to write summaries to."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = Field(
        "nightshift",
        description="name under which the table records what was delivered; use another name for each output folder",
    )


class FetchConfig(JobConfig):
    """Copy the documents of an Iceberg, Delta, PostgreSQL or JSON lines table to Parquet files for jobs.summarize."""

    input: FetchInput
    output: FetchOutput = FetchOutput()


class DeliverConfig(JobConfig):
    """Write new and changed summaries to a table, exactly once."""

    input: DeliverInput = DeliverInput()
    output: DeliverOutput
