"""CUDA graphs: capture a few decoding steps once, then replay them as one launch.

A decoding step is about fifty small kernels, which the host launches more slowly than the GPU runs them. A graph replays the
same kernels on the same shapes and addresses. So greedy.py copies each batch into static buffers whose shapes are rounded up to
a few buckets, and runs steps of fixed shape through ``GraphCache.run``. Nothing here knows what a step does: greedy.py handles
``</s>`` inside the steps and compacts the batch between replays. Beam search does not use graphs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

_MAX_GRAPHS = 512
"""Captured graphs to keep, each with some hundred kernels. One more discards all; they are captured again when needed."""


class GraphCache:
    """Captured graphs by key and static buffers by name. Not thread-safe.

    On a device without graphs, the work runs directly, with the same results.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.captured: dict[Hashable, torch.cuda.CUDAGraph] = {}
        self._buffers: dict[str, Tensor] = {}
        self._warm_keys: set[Hashable] = set()
        # torch's shared capture stream has one workspace for all caches, which is freed with the first cache's graphs.
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]

    def static_buffer(self, name: str, x: Tensor, *shape: int) -> Tensor:
        """Copy x into the start of a buffer of this shape, at the address of the last buffer of this name.

        Elements beyond x are arbitrary, and finite if every x is.
        """
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < size or buffer.dtype != x.dtype:
            self.captured.clear()  # they read the buffer that is about to be freed
            self._buffers.pop(name, None)
            del buffer
            buffer = self._buffers[name] = torch.zeros(size, dtype=x.dtype, device=self.device)
        view = buffer[:size].view(shape)
        view[tuple(slice(length) for length in x.shape)] = x
        return view

    def run(self, key: Hashable, work: Callable[[], None]) -> None:
        """Run work that reads and writes static buffers only, never waits for the device, and is the same for the same key.

        The first run with a key loads its kernels, the second captures a graph, and later ones replay it.
        """
        if self.device.type != "cuda" or key not in self._warm_keys:
            work()
            self._warm_keys.add(key)
            return
        if key not in self.captured:
            if len(self.captured) >= _MAX_GRAPHS:
                self.captured.clear()
            graph = torch.cuda.CUDAGraph()
            # All graphs share a memory pool: no two run at once, and nothing reads from it after a run.
            pool = next(iter(self.captured.values())).pool() if self.captured else None
            with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
                work()
            self.captured[key] = graph
        self.captured[key].replay()

    def clear(self) -> None:
        """Free all buffers and graphs; they are created again when needed."""
        self.captured.clear()
        self._buffers.clear()
        self._warm_keys.clear()


def round_up_to_bucket(size: int) -> int:
    """Round a size up to a multiple of an eighth of a power of two, which wastes at most a fifth."""
    step = 1 << max(0, (size - 1).bit_length() - 3)
    return -(-size // step) * step
