"""Drop unchanged rows that an earlier run processed, and mark rejected rows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray

from pipeline.config.summarize import DocumentsInput
from pipeline.data.arrow import to_texts
from pipeline.data.hashing import content_keys, id_keys
from pipeline.data.partition import KeyedRows
from pipeline.data.rejects import Rejection, RejectReason, check_document
from pipeline.data.row_address import ROW_ADDRESS, unpack_address
from pipeline.inference.stages.window import CONTENT_KEY, DETAIL, ID_KEY, REASON
from pipeline.runs.ledger import REJECTED, Ledger, find_entries


class RowFilter:
    """Filters the rows of one split.

    Args:
        salt: Salt of content keys: a hash of everything a summary depends on besides the text.
        ledger: Documents that earlier runs processed, if any.
        duplicates: Rows that repeat an id (``IdCheck.duplicates``), if they are known.

    Attributes:
        skipped: Dropped rows by their outcome in the earlier run.
    """

    def __init__(
        self, input: DocumentsInput, salt: bytes, ledger: Ledger | None, duplicates: ray.ObjectRef[KeyedRows] | None
    ) -> None:
        self._input, self._salt = input, salt
        self._ledger = None if ledger is None else ray.get(list(ledger.parts))
        self._duplicates = None if duplicates is None else ray.get(duplicates)
        self.skipped: Counter[str] = Counter()

    def apply(self, rows: pa.Table) -> pa.Table:
        """Return the rows to process, with their keys and the reason and detail of a reject."""
        texts, ids = to_texts(rows[self._input.text_column]), rows[self._input.id_column]
        rejections = [
            check_document(has_id, text, self._input.max_chars)
            for has_id, text in zip(ids.is_valid().to_pylist(), texts, strict=True)
        ]
        keys = id_keys(str(value) for value in to_texts(ids))[:, 0]
        # The content of a rejected row is its rejection: its text may be null.
        contents = content_keys(
            (f"{reason}: {detail}" if reason else str(text) for text, (reason, detail) in zip(texts, rejections, strict=True)),
            self._salt,
        )
        is_duplicate = self._reject_duplicates(rows, rejections)
        is_done = np.zeros(len(rows), np.bool_)
        if self._ledger is not None:
            is_known, known_contents = find_entries(self._ledger, keys)
            is_unchanged = is_known & (known_contents | REJECTED == contents | REJECTED)
            is_done = is_unchanged & ids.is_valid().to_numpy() & ~is_duplicate
            rejected = int((known_contents[is_done] & REJECTED).sum())
            self.skipped += Counter({"rejected": rejected, "summarized": int(is_done.sum()) - rejected})
        table = (
            rows.append_column(ID_KEY, pa.array(keys))
            .append_column(CONTENT_KEY, pa.array(contents))
            .append_column(REASON, pa.array([reason for reason, _ in rejections], pa.string()))
            .append_column(DETAIL, pa.array([detail for _, detail in rejections], pa.string()))
        )
        return table.filter(pa.array(~is_done)) if is_done.any() else table

    def _reject_duplicates(self, rows: pa.Table, rejections: list[Rejection]) -> npt.NDArray[np.bool_]:
        """Reject the rows that repeat the id of an earlier row; return which rows these are."""
        if self._duplicates is None or not len(self._duplicates):
            return np.zeros(len(rows), np.bool_)
        addresses = rows[ROW_ADDRESS].to_numpy()
        index = np.minimum(np.searchsorted(self._duplicates["address"], addresses), len(self._duplicates) - 1)
        is_duplicate: npt.NDArray[np.bool_] = self._duplicates["address"][index] == addresses
        for row in np.flatnonzero(is_duplicate):
            file, first_row = unpack_address(int(self._duplicates["first"][index[row]]))
            rejections[row] = (
                RejectReason.DUPLICATE_ID,
                f"row {first_row} of input file {file} has the same id (both numbers count from 0, files as in the manifest)",
            )
        return is_duplicate
