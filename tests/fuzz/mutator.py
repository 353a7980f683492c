"""Invalid variants of valid files. The same seeds and number always give the same bytes."""

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


def mutate(seeds: Sequence[bytes], number: int) -> bytes:
    """Return input ``number``: one of the seeds, changed in a few places."""
    rng = random.Random(number)
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 5, 12))):
        _change(data, seeds, rng)
    return bytes(data)


def _change(data: bytearray, seeds: Sequence[bytes], rng: random.Random) -> None:
    change, start = rng.randrange(9), rng.randrange(len(data) + 1)
    end = min(len(data), start + rng.choice((1, 2, 4, 8, 16, 64, 500)))
    if change == 0 and start < len(data):
        data[start] ^= 1 << rng.randrange(8)
    elif change == 1 and start < len(data):
        data[start] = rng.randrange(256)
    elif change == 2:
        del data[start:end]
    elif change == 3:
        data[start:start] = data[start:end] * rng.choice((1, 2, 20))
    elif change == 4:
        data[start:start] = rng.randbytes(rng.choice((1, 4, 30)))
    elif change == 5:
        size = rng.choice((2, 4, 8))
        value = rng.choice(_NUMBERS) % (1 << 8 * size)
        data[start : start + size] = value.to_bytes(size, rng.choice(("little", "big")))
    elif change == 6:
        data[start : start + rng.choice((0, 4))] = rng.choice(_WORDS)
    elif change == 7:
        other = rng.choice(seeds)
        other_start = rng.randrange(len(other) + 1)
        data[start:end] = other[other_start : other_start + rng.choice((4, 50, 1000))]
    elif numbers := list(_DIGITS.finditer(bytes(data[:20_000]))):
        match = rng.choice(numbers)
        data[match.start() : match.end()] = rng.choice((str(rng.choice(_NUMBERS)).encode(), rng.choice(_WORDS)))
