"""Which documents of a window the decoder fails on, or dies of: found by halves, so that the others are done.

An error is raised where it can be caught. A process that dies, for want of memory say, leaves the count of attempts that it
began behind; whoever is given the window next goes by that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list, _internal_kv_put

from pipeline.errors import UserError, describe_error

_MAX_ATTEMPTS = 2
"""Of the same documents, whose process died: once is chance, or another's fault."""
_MANY = 8
"""Of documents: where so many fail, and none does not, it is the model that is at fault, or the machine."""
_MAX_DEATHS = 64
"""Of processes with one window. To find one document in 512 takes 20."""

_ADVICE = (
    "of which there may be too many for the memory; set --resources.actors, window_rows or --decoding.max_source_tokens lower"
)

Ints = npt.NDArray[np.int64]
R = TypeVar("R")


@dataclass(frozen=True)
class AttemptCounter:
    """Attempts of a run that were begun and did not end: whoever made them has died. run: a name of its own.

    They are kept by the cluster's head, for as long as it lives, and not by an actor, which is a process more to start.
    """

    run: str

    def begin(self, window: str, part: str, tries: int = _MAX_ATTEMPTS) -> bool:
        """Whether this part of a window may be tried, so often at most: it is then one that was begun."""
        key = self._key(window, part)
        times = int(_internal_kv_get(key) or 0)
        if times < tries:
            _internal_kv_put(key, str(times + 1).encode())
        return times < tries

    def is_first(self, unit: str) -> bool:
        """Whether nobody has asked this of a unit before: not of one either whose results were lost with their node."""
        return not _internal_kv_put(self._key(unit, "asked"), b"", overwrite=False)

    def deaths(self, window: str) -> int:
        """How often processes died with a window, before its next attempt."""
        return sum(int(_internal_kv_get(key) or 0) for key in _internal_kv_list(self._key(window, "")))

    def end(self, window: str, part: str) -> None:
        """What was begun has ended, well or not."""
        _internal_kv_del(self._key(window, part))

    def forget(self) -> None:
        """The run is over."""
        _internal_kv_del(f"nightshift/{self.run}/".encode(), del_by_prefix=True)

    def _key(self, window: str, part: str) -> bytes:
        return f"nightshift/{self.run}/{window}/{part}".encode()


@dataclass(frozen=True)
class FailureBisection:
    """For the documents of one window. attempts: of the run, or None to catch errors alone."""

    attempts: AttemptCounter | None
    window: str

    def run(self, rows: Ints, decode: Callable[[Ints], R], is_sound: Callable[[], None]) -> tuple[R, dict[int, str]]:
        """Decode rows together, but for those that fail on their own.

        Args:
            is_sound: raises if the decoder fails on anything.

        Returns:
            What came of them; and of the failing ones what was said, by row.

        Raises:
            UserError: processes died of too many of them. Else what ``decode`` or ``is_sound`` raised: all of many fail.
        """
        self._check_deaths()
        try:
            found = self._attempt(_part_name(rows), rows, decode)
        except Exception:
            is_sound()
            failed = self._failing_half(rows, decode)
            if not failed or len(failed) == len(rows) >= _MANY:
                raise
        else:
            if found is not None:
                return found, {}
            failed = self._failing_half(rows, decode)
        found = self._attempt("the others", np.setdiff1d(rows, list(failed)), decode)
        if found is None:
            raise UserError(f"processes die decoding {len(rows) - len(failed)} documents together, {_ADVICE}")
        return found, failed

    def _check_deaths(self) -> None:
        """Raises UserError if processes died of more documents of the window than chance or a bad one explains."""
        if self.attempts is not None and (deaths := self.attempts.deaths(self.window)) > _MAX_DEATHS:
            raise UserError(f"{deaths} processes died decoding one window of documents, {_ADVICE}")

    def _failing_half(self, rows: Ints, decode: Callable[[Ints], R]) -> dict[int, str]:
        middle = len(rows) // 2
        return {row: told for half in (rows[:middle], rows[middle:]) for row, told in self._failing(half, decode).items()}

    def _failing(self, rows: Ints, decode: Callable[[Ints], R]) -> dict[int, str]:
        if not len(rows):
            return {}
        try:
            if self._attempt(_part_name(rows), rows, decode) is not None:
                return {}
            told = f"the process that decoded it died, {_MAX_ATTEMPTS} times"
        except Exception as error:
            told = describe_error(error)
        return {int(rows[0]): told} if len(rows) == 1 else self._failing_half(rows, decode)

    def _attempt(self, part: str, rows: Ints, decode: Callable[[Ints], R]) -> R | None:
        """What came of it; None if processes died of it before. part: of the window, by name."""
        if self.attempts is None:
            return decode(rows)
        if not self.attempts.begin(self.window, part):
            return None
        try:
            return decode(rows)
        finally:
            self.attempts.end(self.window, part)


def _part_name(rows: Ints) -> str:
    return f"{rows[0]}-{rows[-1]}" if len(rows) else "none"
