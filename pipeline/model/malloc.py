"""How the C library keeps memory that was freed."""

from __future__ import annotations

import contextlib
import ctypes

KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": f"{2**40}",
    "MALLOC_TOP_PAD_": f"{64 * 2**20}",
    "MALLOC_ARENA_MAX": "1",
}
"""Environment of a process that decodes or learns on a CPU. glibc gives a large array back to the kernel when it is freed, and
the kernel then clears every page of the next step's, a fifth of the time; these have it kept, in one pool for all threads, lest
each keep as much."""


def give_back_freed_memory() -> None:
    """Hand what was freed and lies scattered to the kernel. Batches of ever new shapes otherwise spread over more of it."""
    with contextlib.suppress(OSError, AttributeError):  # other C libraries than glibc have none to be told
        ctypes.CDLL(None).malloc_trim(0)
