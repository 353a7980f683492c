"""What a run's time went into, and what would make the next one faster.

Pure data, as manifest.py: a stage measures a window, windows add up.
"""

from __future__ import annotations

import resource
import sys

from pydantic import BaseModel

_BUSY_SHARE = 0.85
"""Actors that decode for this share of the time are what bounds a run."""


class StageTimings(BaseModel):
    """Seconds, of one process each, that windows took.

    read_s: reading and tokenizing. waited_s: of an actor, without a window to decode. decode_s: decoding. unwritten_s: from
    there until a task began to write it. write_s: decoding subwords and writing. padding: source positions computed for
    nothing. actor_bytes: most memory that an actor has held.
    """

    read_s: float = 0.0
    waited_s: float = 0.0
    decode_s: float = 0.0
    unwritten_s: float = 0.0
    write_s: float = 0.0
    padding: int = 0
    actor_bytes: int = 0

    def __add__(self, other: StageTimings) -> StageTimings:
        sums = {name: getattr(self, name) + getattr(other, name) for name in type(self).model_fields}
        return StageTimings(**{**sums, "actor_bytes": max(self.actor_bytes, other.actor_bytes)})

    def summed_up(self, actor_seconds: float, seconds: float, source_tokens: int) -> str:
        """What limited a run of so many seconds, in a line.

        actor_seconds: of each actor, from its first window to the end. source_tokens: that they read.
        """
        busy = min(1.0, self.decode_s / max(actor_seconds, 1e-9))
        padding = self.padding / max(self.padding + source_tokens, 1)
        if busy >= _BUSY_SHARE:
            gain = "more actors, or faster ones"
        elif self.unwritten_s > max(self.read_s, self.decode_s):
            gain = "a faster output storage, or more CPUs to write with"
        elif self.read_s > _BUSY_SHARE * seconds:
            gain = "more --resources.tokenizers, and CPUs for them"
        else:
            gain = "a longer run, or smaller windows, of which each actor had too few to be busy to the end"
        return (
            f"actors decoded {busy:.0%} of the time and waited {1 - busy:.0%}; {padding:.0%} of what they read was padding; "
            f"most memory: driver {peak_bytes() / 2**20:,.0f} MiB, an actor {self.actor_bytes / 2**20:,.0f} MiB; "
            f"faster with {gain}"
        )


def peak_bytes() -> int:
    """Most memory that this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
