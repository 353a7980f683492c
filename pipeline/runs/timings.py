"""Time that the stages of a run took, and what would make the next run faster.

Pure data: stages measure windows, and the timings of windows add up.
"""

from __future__ import annotations

import resource
import sys

from pipeline.runs.stored import Stored

_BUSY_SHARE = 0.85
"""A run is limited by its actors if they decode for this share of the time."""


class StageTimings(Stored):
    """Process seconds per stage, summed over windows."""

    read_s: float = 0.0
    """Reading and tokenizing."""
    waited_s: float = 0.0
    """Actors waiting for a window."""
    decode_s: float = 0.0
    unwritten_s: float = 0.0
    """Decoded windows waiting for a task to write them."""
    write_s: float = 0.0
    """Detokenizing and writing."""
    padding: int = 0
    """Padded source positions that were computed."""
    actor_bytes: int = 0
    """Peak memory of an actor."""

    def __add__(self, other: StageTimings) -> StageTimings:
        sums = {name: getattr(self, name) + getattr(other, name) for name in type(self).model_fields}
        return StageTimings(**{**sums, "actor_bytes": max(self.actor_bytes, other.actor_bytes)})

    def describe_limit(self, actor_seconds: float, seconds: float, source_tokens: int) -> str:
        """Return one line that says what limited the speed of a run.

        Args:
            actor_seconds: Sum over actors of the time from their first window to the end of the run.
            seconds: Duration of the run.
            source_tokens: Tokens that the actors read.
        """
        busy = min(1.0, self.decode_s / max(actor_seconds, 1e-9))
        padding = self.padding / max(self.padding + source_tokens, 1)
        if busy >= _BUSY_SHARE:
            remedy = "more or faster actors"
        elif self.unwritten_s > max(self.read_s, self.decode_s):
            remedy = "faster output storage, or more CPUs to write with"
        elif self.read_s > _BUSY_SHARE * seconds:
            remedy = "more --resources.tokenizers, and CPUs for them"
        else:
            remedy = "a longer run or smaller windows: each actor had too few windows to stay busy"
        return (
            f"actors decoded {busy:.0%} of the time and waited {1 - busy:.0%}; {padding:.0%} of what they read was padding; "
            f"peak memory: driver {peak_bytes() / 2**20:,.0f} MiB, actor {self.actor_bytes / 2**20:,.0f} MiB; "
            f"faster with {remedy}"
        )


def peak_bytes() -> int:
    """Return the peak memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
