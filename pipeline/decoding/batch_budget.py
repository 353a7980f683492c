"""Size of decode batches: as large as free memory allows, and smaller after a batch ran out of memory."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import torch

from pipeline.config.model import DecodingConfig
from pipeline.decoding.engine import Engine
from pipeline.model.batching import Ints, budget_batches

_LOG = logging.getLogger(__name__)

_MAX_TOKENS = {"cpu": 32_768, "cuda": 1 << 20}
"""Source tokens above which a larger batch is no faster. The number for GPUs is a guess."""

_LOW_TOKENS = 2_000

_PADDING_FACTOR = 1.05
"""Slack for padding in batches of equal size, so that the remainder does not become a batch of its own."""

_USED_SHARE = 0.5
"""Share of the free memory to plan with: estimates may be wrong, and other processes need memory too."""

_CGROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Limit, usage and the key of reclaimable page cache in memory.stat, for control groups of versions 2 and 1."""


class BatchBudget:
    """Limits on the decode batches of a process. Threads may share it.

    Attributes:
        tokens: padded source tokens of a batch, each row counting ``row_tokens`` more.
        row_tokens: what a row takes regardless of its length, in source tokens.
        threads: batches that a CPU decodes at a time, one thread each.
    """

    def __init__(self, tokens: int, row_tokens: int = 0, threads: int = 1) -> None:
        self.tokens, self.row_tokens, self.threads = tokens, row_tokens, threads
        self._lock = threading.Lock()

    @classmethod
    def by_memory(cls, engine: Engine, options: DecodingConfig, share: float, threads: int) -> BatchBudget:
        """Return a budget for this process's ``share`` of the memory that is free now. On a CPU each thread has a batch."""
        position, row = engine.footprint(options)
        batches = threads if engine.device.type == "cpu" else 1
        tokens = _USED_SHARE * share / batches * free_bytes(engine.device) / position
        row_tokens = -(-row // position)
        max_tokens = _MAX_TOKENS[engine.device.type] * (1 + row_tokens / options.max_source_tokens)
        if tokens < _LOW_TOKENS:
            _LOG.warning("little memory is free: decode batches hold only %d tokens, so decoding is slow", tokens)
        return cls(int(max(1, min(tokens, max_tokens))), row_tokens, threads)

    def needed(self, lengths: Ints) -> int:
        """Return the tokens that a batch of sources with lengths[B] takes."""
        return len(lengths) * (int(lengths.max(initial=0)) + self.row_tokens)

    def batches(self, lengths: Ints, order: Ints, threads: int) -> Iterator[Ints]:
        """Yield row indices of each batch, with about the same work for each thread. ``order`` holds rows sorted by length."""
        total = int(lengths[order].sum()) + len(order) * self.row_tokens
        count = threads * max(1, math.ceil(total / self.tokens / threads))
        even_tokens = math.ceil(total / count * _PADDING_FACTOR)
        return budget_batches((lengths, np.full_like(lengths, self.row_tokens)), order, min(self.tokens, even_tokens))

    def lower(self, needed: int) -> None:
        """Halve the budget after a batch of ``needed`` tokens ran out of memory."""
        with self._lock:
            if needed // 2 < self.tokens:
                self.tokens = max(1, needed // 2)
                _LOG.warning("a batch of %d tokens ran out of memory; batches now hold %d tokens", needed, self.tokens)


def free_bytes(device: torch.device) -> int:
    """Return the memory that this process can still allocate, given its device, its control group and its own limit."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # torch reuses it
        return int(torch.cuda.mem_get_info(device)[0]) + cached
    free = [psutil.virtual_memory().available, *_cgroup_free_bytes()]
    process = psutil.Process()
    if hasattr(process, "rlimit") and (limit := process.rlimit(psutil.RLIMIT_AS)[0]) != psutil.RLIM_INFINITY:
        free.append(limit - process.memory_info().vms)
    return max(0, min(free))


def _cgroup_free_bytes() -> Iterator[int]:
    """Yield the free bytes of this process's control group and of each parent that has a limit."""
    file = Path("/proc/self/cgroup")
    lines = file.read_text().splitlines() if file.exists() else []
    for _, controllers, group in (line.split(":", 2) for line in lines):
        if controllers and "memory" not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup", "memory" if controllers else "")
        for folder in (root / group.strip("/"), *(root / group.strip("/")).parents):
            if not folder.is_relative_to(root):
                break
            for limit_file, usage_file, cache_key in _CGROUP_FILES:
                with contextlib.suppress(OSError, ValueError):  # another version's file, or no limit
                    limit, usage = (int((folder / name).read_text()) for name in (limit_file, usage_file))
                    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    yield limit - usage + int(stat.get(cache_key, 0))


def is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out. Most libraries raise a RuntimeError that only the message tells apart."""
    cpu = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "could not create a ")
    gpu = ("alloc_failed", "allocation_failed")  # cuBLAS, cuDNN
    message = str(error).casefold()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(text in message for text in cpu + gpu)
