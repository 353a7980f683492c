"""A source that Ray Data reads: its tasks read the requested rows and columns and write them as Parquet files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import ray.data
import ray.exceptions

from pipeline import cluster
from pipeline.errors import UserError, describe_error
from pipeline.io.location import Location
from pipeline.tables.filter_expression import parse_filter
from pipeline.tables.schema import cast_to_schema


@dataclass(frozen=True)
class RaySource:
    """Documents that Ray Data reads (see base.Source).

    Attributes:
        rows: number of rows in the snapshot; None if it is not known.
        filter: expression of Ray Data that selects rows; None for all.
        open_dataset: returns the snapshot as a dataset.
    """

    snapshot: str
    schema: pa.Schema
    rows: int | None
    filter: str | None
    open_dataset: Callable[[], ray.data.Dataset]

    def write(self, folder: Location) -> int | None:
        cluster.connect()
        try:
            dataset = self.open_dataset()
            if self.filter:
                try:
                    dataset = dataset.filter(expr=parse_filter(self.filter))
                except (ValueError, TypeError) as error:
                    message = f"--input.filter {self.filter!r} is not an expression of Ray Data: {describe_error(error)}"
                    raise UserError(message) from None
            dataset = dataset.select_columns(self.schema.names)
            dataset = dataset.map_batches(
                partial(cast_to_schema, schema=self.schema), batch_format="pyarrow", batch_size=None, zero_copy_batch=True
            )
            dataset.write_parquet(folder.path, filesystem=folder.filesystem)
        except ray.exceptions.RayError as error:
            raise cluster.to_user_error(error) from None
        return None if self.filter else self.rows
