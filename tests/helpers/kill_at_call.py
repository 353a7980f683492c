"""Run a job and kill it at a call: ``python kill_at_call.py JOB MODULE:CLASS.METHOD before|after NUMBER [OPTION …]``.

NUMBER counts the calls of the method, from 1.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from functools import reduce
from typing import Any


def patch(target: str, moment: str, number: int) -> None:
    """Make this process kill itself before or after a call."""
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner = reduce(getattr, owners, importlib.import_module(module))
    function, calls = getattr(owner, name), 0

    def call_and_die(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and moment == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args, **kwargs)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, call_and_die)


if __name__ == "__main__":
    job, target, moment, number, *options = sys.argv[1:]
    patch(target, moment, int(number))
    sys.argv = [job, *options]
    sys.exit(importlib.import_module(f"jobs.{job}").main())
