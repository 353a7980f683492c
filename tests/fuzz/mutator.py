"""Bytes like those of real files, and wrong: the same for the same seed and number."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

_NUMBERS = (0, 1, -1, 127, 255, 2**15, 2**16, 2**31 - 1, -(2**31), 2**32, 2**40, 2**63 - 1, -(2**63), 2**64)
_WORDS = (
    b"null", b"true", b"{}", b"[]", b'""', b"NaN", b"Infinity", b"1e999", b"-0.0", b"[" * 3000, b'{"a":' * 3000, b"9" * 5000,
    b"../../x", b"\x00", b"\xff", b"\xed\xa0\x80", b"\\ud800", b"\xe2\x80\xae", b"e\xcc\x81" * 500, b"&a [*a, *a]",
    b"!!python/name:os.system",
)  # fmt: skip
_DIGITS = re.compile(rb"-?\d+(?:\.\d+)?")


def mutated(seeds: Sequence[bytes], number: int) -> bytes:
    """Input ``number``: one of the seeds, changed in a few places."""
    draw = random.Random(number)
    data = bytearray(draw.choice(seeds))
    for _ in range(draw.choice((1, 1, 1, 2, 2, 3, 5, 12))):
        _change(data, seeds, draw)
    return bytes(data)


def _change(data: bytearray, seeds: Sequence[bytes], draw: random.Random) -> None:
    kind, at = draw.randrange(9), draw.randrange(len(data) + 1)
    end = min(len(data), at + draw.choice((1, 2, 4, 8, 16, 64, 500)))
    if kind == 0 and at < len(data):
        data[at] ^= 1 << draw.randrange(8)
    elif kind == 1 and at < len(data):
        data[at] = draw.randrange(256)
    elif kind == 2:
        del data[at:end]
    elif kind == 3:
        data[at:at] = data[at:end] * draw.choice((1, 2, 20))
    elif kind == 4:
        data[at:at] = draw.randbytes(draw.choice((1, 4, 30)))
    elif kind == 5:
        size = draw.choice((2, 4, 8))
        value = draw.choice(_NUMBERS) % (1 << 8 * size)
        data[at : at + size] = value.to_bytes(size, draw.choice(("little", "big")))
    elif kind == 6:
        data[at : at + draw.choice((0, 4))] = draw.choice(_WORDS)
    elif kind == 7:
        other = draw.choice(seeds)
        start = draw.randrange(len(other) + 1)
        data[at:end] = other[start : start + draw.choice((4, 50, 1000))]
    elif numbers := list(_DIGITS.finditer(bytes(data[:20_000]))):
        found = draw.choice(numbers)
        data[found.start() : found.end()] = draw.choice((str(draw.choice(_NUMBERS)).encode(), draw.choice(_WORDS)))
