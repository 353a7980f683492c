"""A memory limit for a process that reads untrusted files.

A Parquet file of a few kilobytes may unpack to terabytes. Beyond the limit, an allocation fails with a MemoryError, and the
message can name the file; without it, the kernel would kill some process. The limit has an effect only on Linux.
"""

from __future__ import annotations

import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UserError

LIMIT_BYTES = 4 * 2**30
_INITIAL_LIMIT = resource.getrlimit(resource.RLIMIT_DATA)
"""Limit at import. Always restored in full, since the garbage collector may close an abandoned block late."""
_STATUS = Path("/proc/self/status")


@contextmanager
def memory_limit(name: str) -> Iterator[None]:
    """Let this process allocate at most ``LIMIT_BYTES`` more while the block reads the file ``name``; UserError beyond that."""
    if _STATUS.exists():
        limits = [limit for limit in (_data_bytes() + LIMIT_BYTES, *_INITIAL_LIMIT) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min(limits), _INITIAL_LIMIT[1]))
    try:
        yield
    except MemoryError:
        raise UserError(
            f"{name}: takes more than {LIMIT_BYTES / 2**30:.1f} GiB of memory to read; repair or remove the file"
        ) from None
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, _INITIAL_LIMIT)


def _data_bytes() -> int:
    """Return the private writable memory of this process, which RLIMIT_DATA bounds."""
    match = re.search(r"VmData:\s*(\d+) kB", _STATUS.read_text())
    return int(match[1]) * 1024 if match else 0
