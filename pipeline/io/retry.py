"""Retries with exponential backoff.

Requests to S3 are retried at a lower level, by the AWS library in pyarrow: see ``s3.py``.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Backoff:
    """A number of attempts with a pause between them that doubles each time.

    Args:
        attempts: number of attempts, at least 1.
        pause_s: pause after the first failed attempt.
        jitter: sleep a random part of each pause, so that processes in conflict do not collide again.
    """

    attempts: int
    pause_s: float
    jitter: bool = False

    def __iter__(self) -> Iterator[bool]:
        """Yield before each attempt whether it is the last one; sleep between attempts."""
        for attempt in range(self.attempts):
            if attempt:
                pause_s = self.pause_s * 2 ** (attempt - 1)
                time.sleep(random.uniform(0, pause_s) if self.jitter else pause_s)
            yield attempt == self.attempts - 1

    def run(
        self, action: Callable[[], T], is_transient: Callable[[Exception], bool] = lambda error: isinstance(error, OSError)
    ) -> T:
        """Return the result of ``action()``; retry it after a transient error until no attempts are left."""
        for is_last in self:
            try:
                return action()
            except Exception as error:
                if is_last or not is_transient(error):
                    raise
        raise AssertionError("a Backoff has at least one attempt")


STORAGE = Backoff(attempts=4, pause_s=0.5)
"""Retries of reads and writes during a run, which must survive a short failure of the storage."""
