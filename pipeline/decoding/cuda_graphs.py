"""Work that a GPU does as one launch, again and again: CUDA graphs, and the memory that they read.

A decoding step is some fifty small kernels, which a host launches more slowly than the device runs them. A graph launches a
few steps at once, but does what it was captured doing: the same shapes, at the same addresses. So what changes from batch to
batch is copied into memory that stays where it is, of shapes from a short ladder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

_MAX_GRAPHS = 512
"""Graphs kept, of some hundred kernels each; with one more, all are made again as they are needed."""


class GraphCache:
    """Graphs by key, and held memory by name. Where a device has no graphs, work is simply done: the results are the same.

    Not for several threads at once.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._memory: dict[str, Tensor] = {}
        self._seen: set[Hashable] = set()
        self._captured: dict[Hashable, torch.cuda.CUDAGraph] = {}
        # Of its own: torch's common one for captures has one workspace for all, which goes with whoever's graphs go first.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def hold(self, name: str, x: Tensor, *shape: int) -> Tensor:
        """x in the first part of an array of this shape, which lies where the last one of this name and shape lay.

        What is beyond x is of no meaning, and finite if all x are.
        """
        size = math.prod(shape)
        memory = self._memory.get(name)
        if memory is None or len(memory) < size or memory.dtype != x.dtype:
            self._captured.clear()  # they read the memory that is let go of
            self._memory.pop(name, None)
            del memory
            memory = self._memory[name] = torch.zeros(size, dtype=x.dtype, device=self.device)
        held = memory[:size].view(shape)
        held[tuple(slice(length) for length in x.shape)] = x
        return held

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Do work, which is the same for the same key: it reads and writes what is held, and waits for nothing.

        The first time it is just done, which loads its kernels; the second time it is captured.
        """
        if self.device.type != "cuda" or key not in self._seen:
            work()
            self._seen.add(key)
            return
        if key not in self._captured:
            if len(self._captured) >= _MAX_GRAPHS:
                self._captured.clear()
            graph = torch.cuda.CUDAGraph()
            # One pool for all: no two run at once, and nothing is read from it after a run.
            pool = next(iter(self._captured.values())).pool() if self._captured else None
            with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                work()
            self._captured[key] = graph
        self._captured[key].replay()

    def clear(self) -> None:
        """Let go of all memory and graphs; they are made again as they are needed."""
        self._captured.clear()
        self._memory.clear()
        self._seen.clear()


def round_up_to_bucket(number: int) -> int:
    """The least size of the ladder that holds a number ≥ 1: eighths of a power of two, so that at most a fifth is unused."""
    step = 1 << max(0, (number - 1).bit_length() - 3)
    return -(-number // step) * step
