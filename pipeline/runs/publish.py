"""Which runs of an output folder are published: those with ``runs/<run_id>/_SUCCESS``, in the order of their ends.

The file holds the run's sequence number, as JSON: what is the later of two runs does not hang on any clock. And the sha256 of
its manifest, by which verify.py knows that nobody has edited that.
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
    """A finished run. sequence: 1 for the first of its folder. manifest_sha256: unset where an earlier version wrote it."""

    run_id: str
    sequence: int
    manifest_sha256: str | None = None


class _Success(BaseModel):
    """What a _SUCCESS holds. The ledger keeps a sequence number in 32 bits."""

    sequence: Annotated[int, Field(gt=0, lt=1 << 32)]
    manifest_sha256: str | None = None


def finished_runs(output: Location) -> list[FinishedRun]:
    """The runs that are finished, the first of them first.

    Raises:
        UserError: a _SUCCESS is not one that this version writes.
    """
    found = [run for run in map_ahead(lambda name: read_success(output, name), run_ids(output)) if run is not None]
    return sorted(found, key=lambda run: run.sequence)


def read_success(output: Location, run_id: str) -> FinishedRun | None:
    """What a run's _SUCCESS says; None if there is none. Raises UserError as ``finished_runs`` does."""
    marker = run_folder(output, run_id).child(SUCCESS)
    if not marker.exists():
        return None
    try:
        said = _Success.model_validate_json(marker.read())
    except ValidationError:
        raise UserError(
            f"{marker.uri} does not say which run of its folder it was the end of: another version wrote it; "
            "set another --output.path"
        ) from None
    return FinishedRun(run_id, said.sequence, said.manifest_sha256)


def last_sequence(runs: Sequence[FinishedRun]) -> int:
    """Return the sequence number of the latest run; 0 if there is none."""
    return max((run.sequence for run in runs), default=0)


def publish(output: Location, run_id: str, sequence: int, manifest: bytes) -> FinishedRun:
    """Write _SUCCESS: the run is finished, and readers of the output see it. The caller holds the lease.

    Args:
        sequence: one more than that of the latest finished run.
        manifest: content of the run's manifest.json, which is already written.
    """
    run = FinishedRun(run_id, sequence, hashlib.sha256(manifest).hexdigest())
    content = {"sequence": run.sequence, "manifest_sha256": run.manifest_sha256}
    run_folder(output, run_id).child(SUCCESS).write_with_retry(json.dumps(content).encode() + b"\n")
    return run
