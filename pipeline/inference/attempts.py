"""Which documents of a window the decoder fails on, or dies of: found by halves, so that the others are done.

An error is raised where it can be caught. A process that dies, for want of memory say, leaves the count of attempts that it
began in an actor of its own on the driver's node; whoever is given the window next goes by that.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.errors import UserError
from pipeline.storage import in_words

_TRIES = 2
"""Of the same documents, whose process died: once is chance, or another's fault."""
_MANY = 8
"""Of documents: where so many fail, and none does not, it is the model that is at fault, or the machine."""
_MOST_DEATHS = 64
"""Of processes with one window. To find one document in 512 takes 20."""

Ints = npt.NDArray[np.int64]
R = TypeVar("R")


class Attempts:
    """Attempts that were begun and did not end: whoever made them has died. One for a run, as an actor of Ray's."""

    def __init__(self) -> None:
        self._open: defaultdict[str, Counter[str]] = defaultdict(Counter)

    def begin(self, window: str, part: str) -> tuple[bool, int]:
        """Whether this part of a window may be tried, and how often processes died with the window in all."""
        parts = self._open[window]
        deaths = parts.total()
        may_be_tried = parts[part] < _TRIES
        parts[part] += may_be_tried
        return may_be_tried, deaths

    def end(self, window: str, part: str) -> None:
        """What was begun has ended, well or not."""
        del self._open[window][part]
        if not self._open[window].total():
            del self._open[window]


def count_attempts() -> Any:
    """Start an actor that counts, on the node of this process, which ends with it."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    remote: Any = ray.remote(num_cpus=0, scheduling_strategy=here)(Attempts)  # type: ignore[call-overload]
    return remote.remote()


@dataclass(frozen=True)
class Search:
    """For the documents of one window. attempts: the actor, or None to catch errors alone."""

    attempts: Any
    window: str

    def all_but_failing(
        self, rows: Ints, decode: Callable[[Ints], R], is_sound: Callable[[], None]
    ) -> tuple[R, dict[int, str]]:
        """Decode rows together, but for those that fail on their own.

        Args:
            is_sound: raises if the decoder fails on anything.

        Returns:
            What came of them; and of the failing ones what was said, by row.

        Raises:
            UserError: processes died of too many of them. Else what ``decode`` or ``is_sound`` raised: all of many fail.
        """
        try:
            found = self._attempt(rows, decode)
        except Exception:
            is_sound()
            failed = self._failing_half(rows, decode)
            if not failed or len(failed) == len(rows) >= _MANY:
                raise
        else:
            if found is not None:
                return found, {}
            failed = self._failing_half(rows, decode)
        return decode(np.setdiff1d(rows, list(failed))), failed

    def _failing_half(self, rows: Ints, decode: Callable[[Ints], R]) -> dict[int, str]:
        middle = len(rows) // 2
        return {row: told for half in (rows[:middle], rows[middle:]) for row, told in self._failing(half, decode).items()}

    def _failing(self, rows: Ints, decode: Callable[[Ints], R]) -> dict[int, str]:
        if not len(rows):
            return {}
        try:
            if self._attempt(rows, decode) is not None:
                return {}
            told = f"the process that decoded it died, {_TRIES} times"
        except Exception as error:
            told = in_words(error)
        return {int(rows[0]): told} if len(rows) == 1 else self._failing_half(rows, decode)

    def _attempt(self, rows: Ints, decode: Callable[[Ints], R]) -> R | None:
        """What came of it; None if processes died of it before."""
        if self.attempts is None or not len(rows):
            return decode(rows)
        part = f"{rows[0]}-{rows[-1]}"
        may_be_tried, deaths = ray.get(self.attempts.begin.remote(self.window, part))
        if deaths > _MOST_DEATHS:
            raise UserError(
                f"{deaths} processes died decoding one window of documents: there may be too little memory for them; "
                "set --resources.actors, window_rows or --decoding.max_source_tokens lower"
            )
        if not may_be_tried:
            return None
        try:
            return decode(rows)
        finally:
            ray.get(self.attempts.end.remote(self.window, part))
