"""How much memory a job's processes hold, by what they do, while it runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

_POLL_S = 0.2
_ROLES = {"SummarizeWindow": "actor", "RayTrainWorker": "worker", "ray::": "task"}
"""By a word of the title that Ray gives a process: what it does now, or has done if it waits."""


@contextmanager
def peak_memory(driver: psutil.Process | None = None) -> Iterator[dict[str, int]]:
    """The most bytes of its own that a process of each role held while the block ran, filled in as it runs.

    driver: the job's own process; None: this one.
    """
    of = driver or psutil.Process()
    peaks: dict[str, int] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_POLL_S):
            for role, held in _held(of):
                peaks[role] = max(peaks.get(role, 0), held)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield peaks
    finally:
        ended.set()
        watcher.join()


def _held(driver: psutil.Process) -> Iterator[tuple[str, int]]:
    """Role and bytes of the driver and of each of Ray's processes."""
    try:
        processes = [driver, *driver.children(recursive=True)]
    except psutil.Error:  # it has ended
        return
    for process in processes:
        try:
            memory, title = process.memory_info(), " ".join(process.cmdline())
        except psutil.Error:
            continue
        yield "driver" if process == driver else _role(title), memory.rss - getattr(memory, "shared", 0)


def _role(title: str) -> str:
    return next((role for word, role in _ROLES.items() if word in title), "of Ray's own")
