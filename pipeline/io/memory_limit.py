"""A bound on the memory of a process while it reads what strangers wrote.

A Parquet file of some kilobytes may unpack to terabytes, and nothing in it has to say so. Who asks for more than the bound gets
a MemoryError, and can name the file, where the kernel would end a process of its own choice. Linux alone keeps to it.
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
"""That the process came with. A block that is left late, by the garbage collector, must not leave another's behind."""
_STATUS = Path("/proc/self/status")


@contextmanager
def memory_limit(what: str) -> Iterator[None]:
    """Let this process take ``LIMIT_BYTES`` more at most while the block, which reads ``what``, runs.

    Raises:
        UserError: it asked for more, and did not help itself.
    """
    if _STATUS.exists():
        bounds = [limit for limit in (_data_bytes() + LIMIT_BYTES, *_INITIAL_LIMIT) if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), _INITIAL_LIMIT[1]))
    try:
        yield
    except MemoryError:
        raise UserError(
            f"{what}: takes more than {LIMIT_BYTES / 2**30:.1f} GiB of memory to read; mend it, or take it away"
        ) from None
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, _INITIAL_LIMIT)


def _data_bytes() -> int:
    """Private writable memory, which the kernel counts."""
    found = re.search(r"VmData:\s*(\d+) kB", _STATUS.read_text())
    return int(found[1]) * 1024 if found else 0
