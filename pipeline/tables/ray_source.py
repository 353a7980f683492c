"""A source that Ray Data reads: its tasks take the rows and columns that are asked for, and write them as Parquet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa
import ray.data
import ray.exceptions

from pipeline import cluster
from pipeline.errors import UserError, describe_error
from pipeline.io.location import Location
from pipeline.tables.schema import SchemaCaster


@dataclass(frozen=True)
class RaySource:
    """Documents that ``open`` opens as a dataset. rows: how many the snapshot has, if that is known; filter: which to take."""

    snapshot: str
    schema: pa.Schema
    rows: int | None
    filter: str | None
    open: Callable[[], ray.data.Dataset]

    def write(self, folder: Location) -> int | None:
        """Write the documents as Parquet files; how many there are, if the store knows."""
        cluster.connect()
        try:
            dataset = self.open()
            if self.filter:
                try:
                    dataset = dataset.filter(expr=self.filter)
                except (ValueError, SyntaxError, TypeError) as error:
                    raise UserError(f"--input.filter {self.filter!r} is no condition: {describe_error(error)}") from None
            dataset = dataset.select_columns(self.schema.names)
            dataset = dataset.map_batches(
                SchemaCaster(self.schema).__call__, batch_format="pyarrow", batch_size=None, zero_copy_batch=True
            )
            dataset.write_parquet(folder.path, filesystem=folder.filesystem)
        except ray.exceptions.RayError as error:
            raise cluster.to_user_error(error) from None
        return None if self.filter else self.rows
