"""Read Parquet files of (id, source, target) pairs, as jobs.prepare writes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from pipeline.data.arrow import is_text, is_text_list, to_texts, to_values
from pipeline.errors import UserError, describe_error
from pipeline.io.location import Location, open_location

PAIR_SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("target", pa.string())])

REFERENCES, STYLE = "references", "style"
_OPTIONAL_FIELDS = [pa.field(REFERENCES, pa.list_(pa.string())), pa.field(STYLE, pa.string())]


def pair_schema(*, references: bool, style: bool) -> pa.Schema:
    """Return the schema of shards.

    Args:
        references: With all targets of a source, of which ``target`` is the first; for development and test pairs.
        style: With the style of the target.
    """
    optional = zip(_OPTIONAL_FIELDS, (references, style), strict=True)
    return pa.schema([*PAIR_SCHEMA, *(field for field, is_present in optional if is_present)])


@dataclass(frozen=True)
class PairSet:
    """Open files of pairs.

    Attributes:
        rows: Rows of all files, including incomplete pairs.
    """

    root: Location
    dataset: pads.Dataset
    rows: int

    @property
    def columns(self) -> list[str]:
        """The columns of ``PAIR_SCHEMA`` and the optional ones that there are."""
        optional = [field.name for field in _OPTIONAL_FIELDS if field.name in self.dataset.schema.names]
        return [*PAIR_SCHEMA.names, *optional]

    def count_styles(self) -> Counter[str | None]:
        """Count the rows of each style, None included.

        Raises:
            UserError: A file cannot be read.
        """
        counts = Counter[str | None]()
        if STYLE in self.columns:
            try:
                for batch in self.dataset.to_batches(columns=[STYLE]):
                    for count in batch[STYLE].value_counts().to_pylist():
                        counts[count["values"]] += count["counts"]
            except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
                raise self._unreadable(error) from None
        return counts

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
        """Yield tables of at most ``window_rows`` rows with the columns of ``PAIR_SCHEMA`` and the optional ones, in order.

        Args:
            max_rows: Stop after this many rows.

        Raises:
            UserError: A file cannot be read.
        """
        remaining = self.rows if max_rows is None else max_rows
        try:
            for batch in self.dataset.to_batches(
                columns=self.columns,
                batch_size=window_rows,
                batch_readahead=2,
                fragment_readahead=1,
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
    for name, fits, kind in ((REFERENCES, is_text_list, "a list of strings"), (STYLE, is_text, "a string")):
        if name in dataset.schema.names and not fits(data_type := dataset.schema.field(name).type):
            raise UserError(f"column {name!r} of {uri} is {data_type}, not {kind}; rename it, or set {option}")
    return PairSet(root, dataset, rows)


def drop_incomplete(rows: pa.Table) -> pa.Table:
    """Return the rows that have a source and a target."""
    return rows.filter(pc.and_(rows["source"].is_valid(), rows["target"].is_valid()))


def reference_texts(rows: pa.Table) -> list[list[str]]:
    """Return the references of complete pairs: those of the column references, without nulls, or else the target."""
    targets = [str(text) for text in to_texts(rows["target"])]
    if REFERENCES not in rows.column_names:
        return [[target] for target in targets]
    lists = to_values(rows[REFERENCES])
    texts = [[str(text) for text in values or [] if text is not None] for values in lists]
    return [values or [target] for values, target in zip(texts, targets, strict=True)]


def pair_texts(rows: pa.Table) -> tuple[list[str], list[str]]:
    """Return the sources and the targets of the complete pairs; bytes that are not UTF-8 become U+FFFD."""
    pairs = drop_incomplete(rows)
    return [str(text) for text in to_texts(pairs["source"])], [str(text) for text in to_texts(pairs["target"])]


def pair_styles(rows: pa.Table) -> list[str | None]:
    """Return the style of each complete pair, None without one."""
    pairs = drop_incomplete(rows)
    return to_texts(pairs[STYLE]) if STYLE in rows.column_names else [None] * len(pairs)
