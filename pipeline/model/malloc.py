"""Settings of the C library's memory allocator and of oneDNN's cache."""

from __future__ import annotations

import contextlib
import ctypes

KEEP_FREED_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": f"{2**40}",
    "MALLOC_TOP_PAD_": f"{64 * 2**20}",
    "MALLOC_ARENA_MAX": "1",
}
"""Environment variables for a process that decodes or trains on a CPU. By default glibc returns a large array to the kernel as
soon as it is freed, and the kernel clears every page of the next one: a fifth of the time. With these settings glibc keeps
freed memory, in one pool for all threads."""

NO_PRIMITIVE_CACHE = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "0"}
"""Environment variables for a process that trains on a CPU. By default oneDNN keeps a primitive with its buffers for each of
1,024 shapes, and batches have more shapes than that: a worker grew by a gigabyte in 100 steps. Steps take no longer without."""


def give_back_freed_memory() -> None:
    """Return freed memory to the kernel. Without it, batches of many shapes fragment the heap and memory grows."""
    with contextlib.suppress(OSError, AttributeError):  # malloc_trim exists in glibc only
        ctypes.CDLL(None).malloc_trim(0)
