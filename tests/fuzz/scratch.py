"""A temporary folder of this process, in memory if the machine has /dev/shm."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

SCRATCH = tempfile.mkdtemp(prefix="nightshift-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
_OWNER = os.getpid()
atexit.register(lambda: os.getpid() == _OWNER and shutil.rmtree(SCRATCH, ignore_errors=True))  # not in forked processes
