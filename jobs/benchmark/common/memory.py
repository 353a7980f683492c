"""Memory of the processes of a benchmark: their environment, and peaks by role while a block runs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import psutil

_POLL_S = 0.2
_ROLES = {"SummarizeWindow": "actor", "RayTrainWorker": "worker", "ray::": "task"}
"""Roles by a word in the title that Ray gives to a process; an idle process keeps its last title."""


@contextmanager
def child_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Start child processes with these environment variables, such as the allocator settings of actors and workers."""
    previous = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def peak_memory(driver: psutil.Process | None = None) -> Iterator[dict[str, int]]:
    """Yield a dict of the peak private bytes of one process of each role, updated while the block runs.

    Args:
        driver: Process of the job; by default this one.
    """
    root = driver or psutil.Process()
    peaks: dict[str, int] = {}
    stopped = threading.Event()

    def watch() -> None:
        while not stopped.wait(_POLL_S):
            for role, private_bytes in _private_bytes(root):
                peaks[role] = max(peaks.get(role, 0), private_bytes)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        stopped.set()
        thread.join()


def format_mib(peaks: Mapping[str, int], roles: Sequence[str]) -> list[str]:
    """Format the peaks of some roles as table cells (MiB)."""
    return [f"{peaks.get(role, 0) / 2**20:,.0f}" for role in roles]


def _private_bytes(driver: psutil.Process) -> Iterator[tuple[str, int]]:
    """Yield the role and private bytes of the driver and of each of its Ray processes."""
    try:
        processes = [driver, *driver.children(recursive=True)]
    except psutil.Error:  # the driver has ended
        return
    for process in processes:
        try:
            memory, title = process.memory_info(), " ".join(process.cmdline())
        except psutil.Error:
            continue
        role = next((role for word, role in _ROLES.items() if word in title), "of Ray's own")
        yield "driver" if process == driver else role, memory.rss - getattr(memory, "shared", 0)
