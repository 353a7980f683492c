"""Interface of the types of tables: a source of documents for jobs.fetch and a sink for jobs.deliver.

To add a type of table, say "foo":

1. Write ``pipeline/tables/foo.py`` with two context managers: ``source(options: FetchInput)`` yields a Source, which is a
   RaySource (ray_source.py) if Ray Data can read the table; ``sink(options: DeliverOutput)`` yields a Sink.
2. Add "foo" to ``TableSection.kind`` in pipeline/config/tables.py, and its package to ``_PACKAGES`` below and to the optional
   dependencies in pyproject.toml, under the name "foo". The module imports the package as usual: it is loaded on demand.
3. Add "foo" to tests/helpers/native_tables.py. The tests in tests/tables then cover it.
"""

from __future__ import annotations

import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Protocol

import pyarrow as pa
from pydantic import BaseModel

from pipeline.config.tables import DeliverOutput, FetchInput
from pipeline.errors import UserError
from pipeline.io.location import Location
from pipeline.io.secrets import names_secret, refuse_secrets
from pipeline.runs.publish import FinishedRun
from pipeline.runs.summaries import read_summaries
from pipeline.tables.schema import cast_to_schema, common_type

_PACKAGES = {"iceberg": "pyiceberg.catalog", "delta": "deltalake", "postgres": "psycopg"}
"""Packages that only one type of table needs. Each type's name is also that of its optional dependencies and its module."""


class Source(Protocol):
    """The documents of a table at one moment; later changes to the table do not show."""

    @property
    def snapshot(self) -> str:
        """Name of that moment. Two sources with the same snapshot have the same documents."""

    @property
    def schema(self) -> pa.Schema:
        """Schema of the written files: the id, the text and the columns to keep."""

    def write(self, folder: Location) -> int | None:
        """Write the documents as Parquet files and return their number, or None if the table does not know it."""


class Watermark(BaseModel):
    """The run up to which a table has been brought, as the table itself records it.

    Attributes:
        sequence: the run's number in its output folder.
        manifest_sha256: hash of the run's manifest, which tells output folders apart.
    """

    run_id: str
    sequence: int
    manifest_sha256: str | None

    @classmethod
    def of(cls, run: FinishedRun) -> Watermark:
        return cls(run_id=run.run_id, sequence=run.sequence, manifest_sha256=run.manifest_sha256)


class Sink(ABC):
    """A table that receives summaries, as it was when the sink was opened.

    Attributes:
        keeps_all: True if each delivery contains all summaries, not only those that are new since the last delivery.
        watermark: the last delivery from this output folder; None if there is none.
    """

    keeps_all: bool = False
    watermark: Watermark | None = None

    @property
    def sequence(self) -> int:
        """Sequence number of the last delivered run; 0 if there is none."""
        return self.watermark.sequence if self.watermark else 0

    def is_at(self, watermark: Watermark) -> bool:
        """Return whether this is the watermark of the last delivery."""
        return watermark == self.watermark

    @abstractmethod
    def deliver(self, summaries: Summaries, watermark: Watermark) -> bool:
        """Insert the rows, replace those with the same ids and record the watermark, all in one commit.

        Returns:
            False if another writer changed the table first. Nothing is written then, and the sink must be opened again.
        """


@dataclass(frozen=True)
class Summaries:
    """The latest summary of each document in a range of runs. It can be read repeatedly, with the same rows each time.

    Attributes:
        after: sequence number of the last run before the range.
        up_to: sequence number of the last run in the range.
        columns: columns to deliver besides the id; empty for all.
    """

    output: str
    after: int
    up_to: int
    columns: tuple[str, ...]

    @cached_property
    def schema(self) -> pa.Schema:
        """Schema in types that every table knows. The first column is the id."""
        return pa.schema([field.with_type(common_type(field, "--input.columns")) for field in self._read().schema])

    @property
    def id_column(self) -> str:
        return str(self.schema.names[0])

    @property
    def is_empty(self) -> bool:
        return len(self._read().schema) < 2

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """Yield the rows in a table's types. Raises UserError for a value that does not fit its type."""
        for batch in self._read():
            yield from cast_to_schema(pa.Table.from_batches([batch]), schema).to_batches()

    def _read(self) -> pa.RecordBatchReader:
        reader = read_summaries(self.output, self.after, self.up_to)
        names = reader.schema.names
        if not self.columns or len(names) < 2:
            return reader
        if missing := [column for column in self.columns if column not in names]:
            raise UserError(
                f"the summaries have no column {missing[0]!r} (they have: {', '.join(names[1:])}); set --input.columns"
            )
        selected = list(dict.fromkeys([names[0], *self.columns]))
        schema = pa.schema([reader.schema.field(name) for name in selected])
        return pa.RecordBatchReader.from_batches(schema, (batch.select(selected) for batch in reader))


def open_source(options: FetchInput) -> AbstractContextManager[Source]:
    """Open the documents of a table. Raises UserError if the table, a column or a type is missing or unusable."""
    source: AbstractContextManager[Source] = _load_module(options).source(options)
    return source


def open_sink(options: DeliverOutput) -> AbstractContextManager[Sink]:
    """Open a table, which need not exist yet. Raises UserError if it cannot be reached."""
    sink: AbstractContextManager[Sink] = _load_module(options).sink(options)
    return sink


def _load_module(options: FetchInput | DeliverOutput) -> ModuleType:
    section = "--input" if isinstance(options, FetchInput) else "--output"
    refuse_secrets(options.table, f"{section}.table")
    for name, value in options.catalog_properties.items():
        if names_secret(name):
            variable = f"PYICEBERG_CATALOG__{options.catalog.upper()}__{re.sub(r'[.-]', '_', name).upper()}"
            raise UserError(f"{section}.catalog_properties holds a secret, {name!r}; set it in the environment, as {variable}")
        refuse_secrets(value, f"{section}.catalog_properties")
    try:
        importlib.import_module(_PACKAGES.get(options.kind, "pyarrow"))
    except ImportError as error:
        raise UserError(
            f"{section}.kind {options.kind} needs more packages ({error}): in the checkout, "
            f"run pip install --editable '.[{options.kind}]'"
        ) from None
    return importlib.import_module(f"pipeline.tables.{options.kind}")
