"""How much memory a job's processes hold, by what they do, while it runs in this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

_LOOK_EVERY_S = 0.2
_ROLES = {"SummarizeWindow": "actor", "RayTrainWorker": "worker", "ray::": "task"}
"""By a word of the title that Ray gives a process: what it does now, or has done if it waits."""


@contextmanager
def watched() -> Iterator[dict[str, int]]:
    """The most bytes of its own that a process of each role held while the block ran, filled in as it runs."""
    peaks: dict[str, int] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_LOOK_EVERY_S):
            for role, held in _held():
                peaks[role] = max(peaks.get(role, 0), held)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        ended.set()
        watcher.join()


def _held() -> Iterator[tuple[str, int]]:
    """Role and bytes of this process and of each of Ray's."""
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        try:
            memory, title = process.memory_info(), " ".join(process.cmdline())
        except psutil.Error:  # it has ended
            continue
        yield _role(process, title), memory.rss - getattr(memory, "shared", 0)


def _role(process: psutil.Process, title: str) -> str:
    if process.pid == psutil.Process().pid:
        return "driver"
    return next((role for word, role in _ROLES.items() if word in title), "of Ray's own")
