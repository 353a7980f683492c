"""How much a decode batch may hold: by the memory that is free, and less once a batch has not found room."""

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
"""Tokens of the longest sources beyond which a larger batch is no faster, whatever the memory. That of GPUs is a guess."""


_LOW_TOKENS = 2_000


_PADDING_FACTOR = 1.05
"""In batches of equal size, lest what is left over be a batch of its own."""


_USED_SHARE = 0.5
"""Of the free memory: an estimate may be wrong, and others take memory too."""


_CGROUP_FILES = (
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)
"""Of a control group, versions 2 and 1: its limit, what it uses, and how much of that is files read or written lately."""


class BatchBudget:
    """What the decode batches of a process may hold, which threads may share.

    tokens: padded source tokens, where each row counts as row_tokens more, for what it needs whatever its length.
    """

    def __init__(self, tokens: int, row_tokens: int = 0) -> None:
        self.tokens, self.row_tokens = tokens, row_tokens
        self._lock = threading.Lock()

    @classmethod
    def by_memory(cls, engine: Engine, options: DecodingConfig, share: float, threads: int) -> BatchBudget:
        """For the memory that is free now, of which ``share`` is this process's; on a CPU each thread has a batch in it."""
        position, row = engine.footprint(options)
        batches = threads if engine.device.type == "cpu" else 1
        tokens = _USED_SHARE * share / batches * free_bytes(engine.device) / position
        row_tokens = -(-row // position)
        enough = _MAX_TOKENS[engine.device.type] * (1 + row_tokens / options.max_source_tokens)
        if tokens < _LOW_TOKENS:
            _LOG.warning("there is little memory free: decode batches hold %d tokens, and decoding is slow", tokens)
        return cls(int(max(1, min(tokens, enough))), row_tokens)

    def needed(self, lengths: Ints) -> int:
        """Tokens of a batch of sources with lengths[B]."""
        return len(lengths) * (int(lengths.max(initial=0)) + self.row_tokens)

    def batches(self, lengths: Ints, order: Ints, threads: int) -> Iterator[Ints]:
        """Row numbers of each batch, about as much for each thread; ``order`` is of row numbers, by length."""
        total = int(lengths[order].sum()) + len(order) * self.row_tokens
        number = threads * max(1, math.ceil(total / self.tokens / threads))
        evenly = math.ceil(total / number * _PADDING_FACTOR)
        return budget_batches((lengths, np.full_like(lengths, self.row_tokens)), order, min(self.tokens, evenly))

    def lower(self, needed: int) -> None:
        """A batch that needed so many tokens found no room: half of that from now on."""
        with self._lock:
            if needed // 2 < self.tokens:
                self.tokens = max(1, needed // 2)
                _LOG.warning("a batch of %d tokens found no room in memory; from now on they hold %d", needed, self.tokens)


def free_bytes(device: torch.device) -> int:
    """Memory that this process can still take, by the device, its control group and its own limit."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for what comes next
        return int(torch.cuda.mem_get_info(device)[0]) + kept
    free = [psutil.virtual_memory().available, *_cgroup_free_bytes()]
    process = psutil.Process()
    if hasattr(process, "rlimit") and (of_process := process.rlimit(psutil.RLIMIT_AS)[0]) != psutil.RLIM_INFINITY:
        free.append(of_process - process.memory_info().vms)
    return max(0, min(free))


def _cgroup_free_bytes() -> Iterator[int]:
    """Of this process's control group and those above it, the bytes left of a limit."""
    groups = Path("/proc/self/cgroup")
    lines = groups.read_text().splitlines() if groups.exists() else []
    for _, controllers, own in (line.split(":", 2) for line in lines):
        if controllers and "memory" not in controllers.split(","):
            continue
        root = Path("/sys/fs/cgroup", "memory" if controllers else "")
        for folder in (root / own.strip("/"), *(root / own.strip("/")).parents):
            if not folder.is_relative_to(root):
                break
            for limit, used, files in _CGROUP_FILES:
                with contextlib.suppress(OSError, ValueError):  # not this version's, or no limit
                    bound, taken = (int((folder / name).read_text()) for name in (limit, used))
                    stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                    yield bound - taken + int(stat.get(files, 0))


def is_out_of_memory(error: Exception) -> bool:
    """Whether a batch found no room, of which all but torch's allocator on GPUs tell in words alone."""
    of_cpus = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "could not create a ")
    of_gpus = ("alloc_failed", "allocation_failed")  # cuBLAS, cuDNN
    said = str(error).casefold()
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or any(words in said for words in of_cpus + of_gpus)
