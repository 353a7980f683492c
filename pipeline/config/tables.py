"""The options of jobs.fetch and jobs.deliver."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import JobConfig, Section
from pipeline.config.runs import RunsOutput
from pipeline.config.types import RunId


class TableSection(Section):
    """A document store."""

    kind: Literal["iceberg", "delta", "jsonl", "postgres"] = Field(..., description="what the store is")
    table: str = Field(
        ..., description="NAMESPACE.TABLE in Iceberg, [SCHEMA.]TABLE in PostgreSQL; of Delta and JSON lines the folder, any URI"
    )
    catalog: str = Field("default", description="Iceberg: the catalog's name in .pyiceberg.yaml or PYICEBERG_CATALOG__NAME__…")
    catalog_properties: dict[str, str] = Field(
        {}, description='Iceberg: further properties of the catalog, such as \'{"uri": "sqlite:///c.db"}\'; no passwords'
    )
    connection: str = Field(
        "", description="PostgreSQL: what libpq connects to, as URI or 'host=… dbname=…', beside PGHOST and so on; no password"
    )
    password_env: str | None = Field(
        None, description="PostgreSQL: environment variable with the password; unset: PGPASSWORD, .pgpass or the service's"
    )


class FetchInput(TableSection):
    """The documents in their store."""

    id_column: str = Field(
        "id", description="column of unique ids, string or integer; of PostgreSQL also uuid, which becomes text"
    )
    text_column: str = Field("text", description="column of texts")
    keep_columns: list[str] = Field([], description="further columns to take along")
    filter: str | None = Field(
        None, description="rows to take alone, in PostgreSQL's SQL, else as Ray Data has it: n > 5 and lang == 'en'; unset: all"
    )
    snapshot: int | None = Field(None, description="snapshot id of Iceberg or version of Delta to read; unset: the latest")


class FetchOutput(Section):
    """Where the documents go."""

    path: str = Field("documents", description="folder to write, any URI; then jobs.summarize reads it: --input.path")


class DeliverInput(RunsOutput):
    """The summaries to deliver."""

    run_id: RunId | None = Field(None, description="deliver up to this run; unset: up to the last one that is published")
    columns: list[str] = Field([], description="columns to deliver beside the id; empty: all of them")


class DeliverOutput(TableSection):
    """The store that gets them."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] = Field(
        "nightshift", description="what the table remembers this output folder by; another one for each that delivers into it"
    )


class FetchConfig(JobConfig):
    """Copy the documents of an Iceberg, Delta or PostgreSQL table, or of JSON lines, to Parquet that summarize reads."""

    input: FetchInput
    output: FetchOutput = FetchOutput()


class DeliverConfig(JobConfig):
    """Bring the latest summary of each document that is new or has changed into a store, each once."""

    input: DeliverInput = DeliverInput()
    output: DeliverOutput
