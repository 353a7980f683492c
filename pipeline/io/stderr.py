"""Keep single lines off the screen that C++ code writes to stderr, past Python's logging and warnings."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2
_JOIN_TIMEOUT_S = 1.0


@contextmanager
def hide_lines(text: bytes, timeout_s: float = 10.0) -> Iterator[None]:
    """Hide the lines of this process's stderr that contain ``text`` while the block runs; all others pass at once.

    Hiding ends after ``timeout_s`` at the latest: while it lasts, the last words of a process that aborts may be lost.
    """
    try:
        screen = os.dup(_STDERR)
    except OSError:  # stderr is closed
        yield
        return
    sys.stderr.flush()
    read_end, write_end = os.pipe()
    os.dup2(write_end, _STDERR)
    os.close(write_end)
    thread = threading.Thread(target=_copy_lines, args=(read_end, os.dup(screen), text), daemon=True)
    thread.start()
    timer = threading.Timer(timeout_s, os.dup2, (screen, _STDERR))  # closes the pipe, unless a child process still has it
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        sys.stderr.flush()
        os.dup2(screen, _STDERR)
        os.close(screen)
        thread.join(_JOIN_TIMEOUT_S)


def _copy_lines(read_end: int, screen: int, text: bytes) -> None:
    with open(read_end, "rb", buffering=0) as pipe, open(screen, "wb", buffering=0) as stderr:
        rest = b""
        while piece := pipe.read(65536):
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                if text not in line:
                    stderr.write(line + b"\n")
        stderr.write(rest)
