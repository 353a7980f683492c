"""Which rows of a store are to be done: not those that an earlier run did and that are as they were.

Those that are no documents stay, with the reason why they are rejected.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa

from pipeline.config.summarize import DocumentsInput
from pipeline.data.arrow import to_texts
from pipeline.data.hashing import content_keys, id_keys
from pipeline.data.rejects import Rejection, RejectReason, check_document
from pipeline.data.row_address import ROW_ADDRESS, unpack_address
from pipeline.inference.dedup import DuplicateRows
from pipeline.inference.stages.window import CONTENT_KEY, DETAIL, ID_KEY, REASON
from pipeline.runs.ledger import REJECTED, Ledger


class RowFilter:
    """Looks at the rows of one unit, and counts those that it leaves out.

    Args:
        salt: of content keys: all that a summary follows from beside its text. ledger: what earlier runs did; None: nothing.
            repeated: which rows repeat the id of another; None: none does.
    """

    def __init__(self, input: DocumentsInput, salt: bytes, ledger: Ledger | None, repeated: DuplicateRows | None) -> None:
        self._input, self._salt = input, salt
        self._ledger = None if ledger is None else ledger.lookup()
        self._repeated = None if repeated is None else repeated.fetch()
        self.skipped: Counter[str] = Counter()

    def apply(self, rows: pa.Table) -> pa.Table:
        """Of rows with a ``ROW_ADDRESS`` those that are to be done, with their keys and why they are rejected."""
        texts, ids = to_texts(rows[self._input.text_column]), rows[self._input.id_column]
        rejections = [
            check_document(valid, text, self._input.max_chars)
            for valid, text in zip(ids.is_valid().to_pylist(), texts, strict=True)
        ]
        keys = id_keys(str(value) for value in to_texts(ids))[:, 0]
        # What a rejected row is rejected for stands for it: the text of one may be null.
        contents = content_keys(
            (f"{why}: {detail}" if why else str(text) for text, (why, detail) in zip(texts, rejections, strict=True)),
            self._salt,
        )
        repeats = self._note_repeats(rows, rejections)
        done = np.zeros(len(rows), np.bool_)
        if self._ledger is not None:
            known, before = self._ledger.find(keys)
            done = known & (before | REJECTED == contents | REJECTED) & ids.is_valid().to_numpy() & ~repeats
            rejected = int((before[done] & REJECTED).sum())
            self.skipped += Counter({"rejected": rejected, "summarized": int(done.sum()) - rejected})
        table = (
            rows.append_column(ID_KEY, pa.array(keys))
            .append_column(CONTENT_KEY, pa.array(contents))
            .append_column(REASON, pa.array([why for why, _ in rejections], pa.string()))
            .append_column(DETAIL, pa.array([detail for _, detail in rejections], pa.string()))
        )
        return table.filter(pa.array(~done)) if done.any() else table

    def _note_repeats(self, rows: pa.Table, rejections: list[Rejection]) -> np.ndarray:
        """Reject the rows whose id another row has before them; which they are."""
        repeats = np.zeros(len(rows), np.bool_)
        if self._repeated is not None and len(self._repeated):
            positions = rows[ROW_ADDRESS].to_numpy()
            at = np.minimum(np.searchsorted(self._repeated["at"], positions), len(self._repeated) - 1)
            repeats = self._repeated["at"][at] == positions
            for row in np.flatnonzero(repeats):
                file, first = unpack_address(int(self._repeated["first"][at[row]]))
                rejections[row] = (
                    RejectReason.DUPLICATE_ID,
                    f"row {first} of input file {file}, both counted from 0 as in the manifest, has this id before it",
                )
        return repeats
