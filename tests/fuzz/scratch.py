"""A temporary folder of the process that imports this first and of its children, in memory if the machine has /dev/shm."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

_VARIABLE = "NIGHTSHIFT_FUZZ_SCRATCH"

if _VARIABLE not in os.environ:
    os.environ[_VARIABLE] = tempfile.mkdtemp(prefix="nightshift-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    atexit.register(shutil.rmtree, os.environ[_VARIABLE], ignore_errors=True)
SCRATCH = os.environ[_VARIABLE]
