"""Keys of documents, by which they are found again: of an id, and of all that its summary follows from.

Knows bytes alone; what is kept of them, and for how long, is the ledger's business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]


def id_keys(ids: Iterable[str]) -> Keys:
    """16 bytes of each of N ids [N, 2], of which the first eight are its key.

    Of a billion ids two share a key with a chance of 3 %, and all 16 bytes with one of 1e-21: where a document would be lost
    by it, all are compared.
    """
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in ids)
    return np.frombuffer(digests, "<u8").reshape(-1, 2)


def content_keys(contents: Iterable[str], salt: bytes) -> Keys:
    """8 bytes of each of N contents [N]. salt: what they are hashed with, 64 bytes at most."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8, key=salt).digest() for text in contents)
    return np.frombuffer(digests, "<u8")
