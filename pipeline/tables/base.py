"""What the modules of the stores have in common: what a source and a sink are, and which packages and words they need."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, Protocol

import pyarrow as pa
from pydantic import BaseModel

from pipeline.config.tables import DeliverOutput, FetchInput
from pipeline.errors import UserError
from pipeline.io.location import Location
from pipeline.io.secrets import holds_secrets, names_secret
from pipeline.runs.publish import FinishedRun
from pipeline.runs.summaries import read_summaries
from pipeline.tables.schema import SchemaCaster, common_type

_MODULES = {"iceberg": "iceberg", "delta": "delta", "jsonl": "json_lines", "postgres": "postgres"}


class Source(Protocol):
    """The documents of a store as they are at one moment, whatever is written there meanwhile."""

    @property
    def snapshot(self) -> str:
        """Names that moment: while it is the same, so are the documents."""

    @property
    def schema(self) -> pa.Schema:
        """Of the files that are written: the id, the text, and the columns to keep."""

    def write(self, folder: Location) -> int | None:
        """Write the documents as Parquet files; how many there are, if the store knows."""


class Watermark(BaseModel):
    """What a table remembers of the last delivery: the run, its number in the output folder, and the sum of its manifest."""

    run_id: str
    sequence: int
    manifest_sha256: str | None

    @classmethod
    def of(cls, run: FinishedRun) -> Watermark:
        """Of a delivery up to this run."""
        return cls(run_id=run.run_id, sequence=run.sequence, manifest_sha256=run.manifest_sha256)


@dataclass(frozen=True)
class Summaries:
    """The latest summary of each document over some runs, as a table gets it; each reading has the same rows.

    after, up_to: the sequence numbers of the last run that is not among them, and of the last that is. columns: those beside
    the id; none: all.
    """

    output: str
    after: int
    up_to: int
    columns: tuple[str, ...]

    @cached_property
    def schema(self) -> pa.Schema:
        """Of types that all stores know. The first column is the id."""
        return pa.schema([field.with_type(common_type(field, "--input.columns")) for field in self._read().schema])

    @property
    def id_column(self) -> str:
        """The id's name."""
        return str(self.schema.names[0])

    @property
    def is_empty(self) -> bool:
        """Whether no run has a summary."""
        return len(self._read().schema) < 2

    def batches(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The rows, as they are read. Raises UserError where a value has no place in the schema."""
        conforming = SchemaCaster(schema)
        for batch in self._read():
            yield from conforming(pa.Table.from_batches([batch])).to_batches()

    def _read(self) -> pa.RecordBatchReader:
        reader = read_summaries(self.output, self.after, self.up_to)
        names = reader.schema.names
        if not self.columns or len(names) < 2:
            return reader
        if missing := [column for column in self.columns if column not in names]:
            raise UserError(f"the summaries have no column {missing[0]!r}; --input.columns can be of {', '.join(names[1:])}")
        chosen = list(dict.fromkeys([names[0], *self.columns]))
        schema = pa.schema([reader.schema.field(name) for name in chosen])
        return pa.RecordBatchReader.from_batches(schema, (batch.select(chosen) for batch in reader))


class Sink(Protocol):
    """A table that summaries are delivered to, as it was when the sink was opened.

    keeps_all: each delivery holds all summaries there are, and not what is new since the last one.
    """

    keeps_all: bool

    @property
    def sequence(self) -> int:
        """That of the last delivery's mark; 0 if there was none under this name."""

    def remembers(self, mark: Watermark) -> bool:
        """Whether this is the last delivery's mark."""

    def deliver(self, summaries: Summaries, mark: Watermark) -> bool:
        """Put the rows in the place of those with the same ids, and the mark with them: all at once, or nothing.

        False where another writer changed the table meanwhile, so that the sink must be opened anew.
        """


class OneMark:
    """What a sink says of the one mark that its table has for it."""

    _mark: Watermark | None

    @property
    def sequence(self) -> int:
        """That of the last delivery's mark; 0 if there was none."""
        return self._mark.sequence if self._mark else 0

    def remembers(self, mark: Watermark) -> bool:
        """Whether this is the last delivery's mark."""
        return mark == self._mark


def open_source(options: FetchInput) -> AbstractContextManager[Source]:
    """Hold on to the documents of a store. Raises UserError where it has no such table, column or type."""
    source: AbstractContextManager[Source] = _module(options).source(options)
    return source


def open_sink(options: DeliverOutput) -> AbstractContextManager[Sink]:
    """Look at a table, which need not be there yet. Raises UserError where the store cannot be reached."""
    sink: AbstractContextManager[Sink] = _module(options).sink(options)
    return sink


def _module(options: FetchInput | DeliverOutput) -> ModuleType:
    option = "--input" if isinstance(options, FetchInput) else "--output"
    without_secrets(options.table, f"{option}.table")
    for name, value in options.catalog_properties.items():
        if names_secret(name):
            raise UserError(
                f"{option}.catalog_properties holds {name!r}, which is no word for a command line or a file: set it in the "
                f"environment, as PYICEBERG_CATALOG__{options.catalog.upper()}__{re.sub(r'[.-]', '_', name).upper()}"
            )
        without_secrets(value, f"{option}.catalog_properties")
    return importlib.import_module(f"pipeline.tables.{_MODULES[options.kind]}")


def without_secrets(uri: str, option: str) -> None:
    """Raises UserError for a URI with a password in it, without saying which."""
    if holds_secrets(uri):
        raise UserError(f"{option} has a password in it; take it out: docs/tables.md says where passwords come from")


def require_module(module: str, extra: str) -> Any:
    """A package that only some stores need. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"a store of this kind needs more packages ({error}): in the checkout, pip install --editable '.[{extra}]'"
        ) from None
