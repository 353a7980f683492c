"""The processes of a job in this process, to be killed."""

from __future__ import annotations

import psutil


def processes_titled(word: str) -> list[int]:
    """Process ids of Ray's workers whose title, as Ray sets it, has this word."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.Error:  # it has ended
            continue
        if title.startswith("ray::") and word in title:
            found.append(process.pid)
    return found
