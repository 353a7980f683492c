"""A row's address in an input: the number of its file and its row in that file, in one integer."""

from __future__ import annotations

ROW_BITS = 32
"""Of a row's place in a store: the file's number is above them, the row's in the file below, so that it has fewer than
``1 << ROW_BITS``."""


ROW_ADDRESS = "nightshift.position"
"""A document's place in its store: the number of the file, and that of the row in the lowest ROW_BITS."""
