"""Row addresses: a file's number in an input and a row's number in that file, packed into one unsigned integer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ROW_BITS = 32
"""The low bits of an address hold the row number, the high bits the file number."""

MAX_FILE_ROWS = (1 << ROW_BITS) - 1

ROW_ADDRESS = "nightshift.row_address"
"""Name of the column of addresses that ``read_split`` adds to each table."""

Addresses = npt.NDArray[np.uint64]


def row_addresses(file_number: int, start: int, rows: int) -> Addresses:
    """Return the addresses of consecutive rows of one file, from row ``start`` on [rows]."""
    return np.arange(start, start + rows, dtype=np.uint64) | np.uint64(file_number << ROW_BITS)


def unpack_address(address: int) -> tuple[int, int]:
    """Return the file number and the row number of one address."""
    return divmod(address, 1 << ROW_BITS)


def file_numbers(addresses: Addresses) -> npt.NDArray[np.uint64]:
    """Return the file number of each of N addresses [N]."""
    return addresses >> np.uint64(ROW_BITS)
