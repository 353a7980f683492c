"""Finished runs of an output folder: those with ``runs/<run_id>/_SUCCESS``, in the order in which they finished.

The file holds the run's sequence number, so that the order of runs does not depend on clocks, and the SHA-256 of its manifest,
by which jobs.verify detects an edited manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from pipeline.errors import UserError
from pipeline.io.location import Location
from pipeline.io.parallel import map_ahead
from pipeline.runs.layout import SUCCESS, run_folder, run_ids


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        sequence: 1 for the first run of the output folder.
        manifest_sha256: None if an earlier version wrote it.
    """

    run_id: str
    sequence: int
    manifest_sha256: str | None = None


class _Success(BaseModel):
    """Content of _SUCCESS. The ledger keeps sequence numbers in 32 bits."""

    sequence: Annotated[int, Field(gt=0, lt=1 << 32)]
    manifest_sha256: str | None = None


def finished_runs(output: Location) -> list[FinishedRun]:
    """List the finished runs, the earliest first. Raises UserError if another version wrote a _SUCCESS."""
    runs = [run for run in map_ahead(lambda run_id: read_success(output, run_id), run_ids(output)) if run is not None]
    return sorted(runs, key=lambda run: run.sequence)


def read_success(output: Location, run_id: str) -> FinishedRun | None:
    """Read the _SUCCESS of a run; None if there is none. Raises UserError as ``finished_runs`` does."""
    marker = run_folder(output, run_id).child(SUCCESS)
    if not marker.exists():
        return None
    try:
        success = _Success.model_validate_json(marker.read())
    except ValidationError:
        raise UserError(
            f"{marker.uri} has no valid sequence number; another version wrote it, so set another --output.path"
        ) from None
    return FinishedRun(run_id, success.sequence, success.manifest_sha256)


def last_sequence(runs: Sequence[FinishedRun]) -> int:
    """Return the sequence number of the latest run; 0 if there is none."""
    return max((run.sequence for run in runs), default=0)


def publish(output: Location, run_id: str, sequence: int, manifest: bytes) -> FinishedRun:
    """Write _SUCCESS: the run is finished, and readers of the output see it. The caller holds the lease.

    Args:
        sequence: One more than that of the latest finished run.
        manifest: Content of the run's manifest.json, which is already written.
    """
    run = FinishedRun(run_id, sequence, hashlib.sha256(manifest).hexdigest())
    content = {"sequence": run.sequence, "manifest_sha256": run.manifest_sha256}
    run_folder(output, run_id).child(SUCCESS).write_with_retry(json.dumps(content).encode() + b"\n")
    return run
