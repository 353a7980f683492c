"""A folder of this process's own, in memory where the machine has such a place."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

SCRATCH = tempfile.mkdtemp(prefix="nightshift-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
_OWNER = os.getpid()
atexit.register(lambda: os.getpid() == _OWNER and shutil.rmtree(SCRATCH, ignore_errors=True))
