"""Find the documents of a window that the decoder fails on, by bisection, so that all others are summarized.

An exception is caught. A process that dies (out of memory, say) leaves the attempt that it started in the AttemptCounter; the
process that is given the window next continues the search from there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list, _internal_kv_put

from pipeline.errors import UserError, describe_error

MAX_ATTEMPTS = 2
"""Attempts to decode the same documents: one death may be chance, or the fault of another process."""

MAX_DEATHS = 64
"""Deaths with one window that end the run. Finding one document in 512 takes 20."""

_MANY_DOCUMENTS = 8
"""If at least this many documents fail and none succeeds, the model or the machine is at fault."""

_ADVICE = (
    "perhaps because they do not fit in memory; set --resources.actors, --resources.window_rows or "
    "--decoding.max_source_tokens lower"
)

Ints = npt.NDArray[np.int64]
R = TypeVar("R")


@dataclass(frozen=True)
class AttemptCounter:
    """Counts attempts of a run that have started and not ended, because their process died.

    The counts are in the key-value store of the cluster's head node. An actor for them would be one more process to start.

    Attributes:
        run: A unique name.
    """

    run: str

    def begin(self, item: str, part: str, max_attempts: int = MAX_ATTEMPTS) -> bool:
        """Return whether a part of an item may be attempted again; if so, count an attempt."""
        key = self._key(item, part)
        attempts = int(_internal_kv_get(key) or 0)
        if attempts < max_attempts:
            _internal_kv_put(key, str(attempts + 1).encode())
        return attempts < max_attempts

    def end(self, item: str, part: str) -> None:
        """Forget the attempts at a part, one of which has ended."""
        _internal_kv_del(self._key(item, part))

    def deaths(self, item: str) -> int:
        """Return how often processes died with an item, before its next attempt."""
        return sum(int(_internal_kv_get(key) or 0) for key in _internal_kv_list(self._key(item, "")))

    def is_first(self, item: str) -> bool:
        """Return True on the first call for an item, also if the caller's node is lost later."""
        return not _internal_kv_put(self._key(item, "asked"), b"", overwrite=False)

    def forget(self) -> None:
        _internal_kv_del(f"nightshift/{self.run}/".encode(), del_by_prefix=True)

    def _key(self, item: str, part: str) -> bytes:
        return f"nightshift/{self.run}/{item}/{part}".encode()


@dataclass(frozen=True)
class FailureBisection:
    """Decodes one window, except the documents that fail.

    Attributes:
        attempts: Attempts of the run; None to handle exceptions only.
    """

    attempts: AttemptCounter | None
    window: str

    def run(self, rows: Ints, decode: Callable[[Ints], R], check_decoder: Callable[[], None]) -> tuple[R, dict[int, str]]:
        """Decode rows together, except those that fail alone.

        Args:
            check_decoder: Raises if the decoder fails on any input.

        Returns:
            The result, and the errors of the rows that are not in it, by row.

        Raises:
            UserError: Too many processes died. If many rows fail and none succeeds, the error of ``decode`` is raised.
        """
        self._check_deaths()
        try:
            result = self._attempt(_part_name(rows), rows, decode)
        except Exception:
            check_decoder()
            failures = self._failures_by_half(rows, decode)
            if not failures or len(failures) == len(rows) >= _MANY_DOCUMENTS:
                raise
        else:
            if result is not None:
                return result, {}
            failures = self._failures_by_half(rows, decode)
        result = self._attempt("others", np.setdiff1d(rows, list(failures)), decode)
        if result is None:
            raise UserError(f"processes die decoding {len(rows) - len(failures)} documents together, {_ADVICE}")
        return result, failures

    def _check_deaths(self) -> None:
        if self.attempts is not None and (deaths := self.attempts.deaths(self.window)) > MAX_DEATHS:
            raise UserError(f"{deaths} processes died decoding one window of documents, {_ADVICE}")

    def _failures_by_half(self, rows: Ints, decode: Callable[[Ints], R]) -> dict[int, str]:
        middle = len(rows) // 2
        return self._failures(rows[:middle], decode) | self._failures(rows[middle:], decode)

    def _failures(self, rows: Ints, decode: Callable[[Ints], R]) -> dict[int, str]:
        """Return the errors of the rows that fail alone, by row."""
        if not len(rows):
            return {}
        try:
            if self._attempt(_part_name(rows), rows, decode) is not None:
                return {}
            error = f"the process that decoded it died, {MAX_ATTEMPTS} times"
        except Exception as exception:
            error = describe_error(exception)
        return {int(rows[0]): error} if len(rows) == 1 else self._failures_by_half(rows, decode)

    def _attempt(self, part: str, rows: Ints, decode: Callable[[Ints], R]) -> R | None:
        """Decode rows; None if processes have died of them already."""
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
