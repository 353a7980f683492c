"""Hash keys of documents: of an id, and of the content that a summary depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]


def id_keys(ids: Iterable[str]) -> Keys:
    """Return 16-byte hashes of N ids as [N, 2]; the first column is the 8-byte key.

    Among a billion ids, two share a key with a probability of 3 %, and all 16 bytes with one of 1e-21. Compare all 16 bytes
    where a collision would lose a document.
    """
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in ids)
    return np.frombuffer(digests, "<u8").reshape(-1, 2)


def content_keys(contents: Iterable[str], salt: bytes) -> Keys:
    """Return 8-byte hashes of N contents [N], keyed with ``salt`` (at most 64 bytes)."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=8, key=salt).digest() for text in contents)
    return np.frombuffer(digests, "<u8")
