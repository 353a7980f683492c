"""A job that kills itself before or after a step: ``python dying.py JOB MODULE:CLASS.METHOD before|after NUMBER [OPTIONS …]``.

NUMBER: which call of the method it is, from 1.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from functools import reduce
from typing import Any


def arm(step: str, when: str, number: int) -> None:
    """Have this process die there."""
    module, _, path = step.partition(":")
    *owners, name = path.split(".")
    owner = reduce(getattr, owners, importlib.import_module(module))
    method, calls = getattr(owner, name), 0

    def method_and_die(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = method(*args, **kwargs)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(owner, name, method_and_die)


if __name__ == "__main__":
    job, step, when, number, *options = sys.argv[1:]
    arm(step, when, int(number))
    sys.argv = [job, *options]
    sys.exit(importlib.import_module(f"jobs.{job}").main())
