"""Read Parquet files of (id, source, target) pairs, as jobs.prepare writes them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from pipeline.data.arrow import is_text, to_texts
from pipeline.errors import UserError, describe_error
from pipeline.io.location import Location, open_location

PAIR_SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("target", pa.string())])


@dataclass(frozen=True)
class PairSet:
    """Open files of pairs.

    Attributes:
        rows: Rows of all files, including incomplete pairs.
    """

    root: Location
    dataset: pads.Dataset
    rows: int

    def count_pairs(self) -> int:
        """Count the rows that have a source and a target, from the statistics of the files where possible.

        Raises:
            UserError: A file cannot be read, or there is no such row.
        """
        try:
            pairs = int(self.dataset.count_rows(filter=pads.field("source").is_valid() & pads.field("target").is_valid()))
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from None
        if not pairs:
            raise UserError(f"each row of {self.root.uri} has a null source or target; set {self.root.option} to pairs")
        return pairs

    def windows(self, window_rows: int, max_rows: int | None = None) -> Iterator[pa.Table]:
        """Yield tables of at most ``window_rows`` rows with the columns id, source and target, in order, up to ``max_rows``.

        Raises:
            UserError: A file cannot be read.
        """
        remaining = self.rows if max_rows is None else max_rows
        try:
            for batch in self.dataset.to_batches(
                columns=PAIR_SCHEMA.names, batch_size=window_rows, batch_readahead=2, fragment_readahead=1
            ):
                if remaining <= 0:
                    return
                if batch.num_rows:
                    yield pa.Table.from_batches([batch.slice(0, remaining)])
                remaining -= batch.num_rows
        except (OSError, pa.ArrowException) as error:
            raise self._unreadable(error) from None

    def _unreadable(self, error: Exception) -> UserError:
        return UserError(f"cannot read {self.root.uri}: {describe_error(error)}; set {self.root.option}")


def open_pairs(uri: str, option: str) -> PairSet:
    """Open a Parquet file, or the Parquet files directly in a folder.

    Raises:
        UserError: There are no files or rows, a file is not Parquet, or a column is missing or is not text.
    """
    root = open_location(uri, option)
    files = [file.path for file in root.parquet_files(recursive=False)]
    try:
        dataset = pads.dataset(files, filesystem=root.filesystem, format="parquet")
        rows = dataset.count_rows()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {uri} as Parquet: {describe_error(error)}; set {option}") from None
    for name in PAIR_SCHEMA.names:
        if name not in dataset.schema.names:
            raise UserError(f"{uri} has no column {name!r} (it has: {', '.join(dataset.schema.names)}); set {option}")
        data_type = dataset.schema.field(name).type
        if name != "id" and not is_text(data_type):
            raise UserError(f"column {name!r} of {uri} is {data_type}, not a string; set {option}")
    if rows == 0:
        raise UserError(f"{uri} has no rows; set {option} to pairs")
    return PairSet(root, dataset, rows)


def drop_incomplete(rows: pa.Table) -> pa.Table:
    """Return the rows that have a source and a target."""
    return rows.filter(pc.and_(rows["source"].is_valid(), rows["target"].is_valid()))


def pair_texts(rows: pa.Table) -> tuple[list[str], list[str]]:
    """Return the sources and the targets of the complete pairs; bytes that are not UTF-8 become U+FFFD."""
    pairs = drop_incomplete(rows)
    return [str(text) for text in to_texts(pairs["source"])], [str(text) for text in to_texts(pairs["target"])]
