"""Which runs of an output folder are published: those with ``runs/<run_id>/_SUCCESS``, in the order of their ends.

The file holds the run's sequence number, as JSON: what is the later of two runs does not hang on any clock. And the sha256 of
its manifest, by which verify.py knows that nobody has edited that.
"""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

from pydantic import BaseModel, Field, ValidationError

from pipeline.errors import UserError
from pipeline.storage import Place

SUCCESS = "_SUCCESS"
KINDS = ("summaries", "rejects")
"""What a run writes of documents: folders of the output, with one of each run in them."""
_RUNS = "runs"
_AT_A_TIME = 16
"""Ends that are read: a storage far away takes its time for each, and a folder has one of every night."""


@dataclass(frozen=True)
class Published:
    """A finished run. sequence: 1 for the first of its folder. manifest_sha256: unset where an earlier version wrote it."""

    run_id: str
    sequence: int
    manifest_sha256: str | None = None


class _Said(BaseModel):
    """What a _SUCCESS holds. The ledger keeps a sequence number in 32 bits."""

    sequence: Annotated[int, Field(gt=0, lt=1 << 32)]
    manifest_sha256: str | None = None


def run_folder(output: Place, run_id: str) -> Place:
    """``runs/<run_id>``, with what there is to know of a run."""
    return output.child(_RUNS).child(run_id)


def run_ids(output: Place) -> list[str]:
    """All runs that have begun."""
    folder = output.child(_RUNS)
    return folder.names() if folder.exists() else []


def published(output: Place) -> list[Published]:
    """The runs that are finished, the first of them first.

    Raises:
        UserError: a _SUCCESS is not one that this version writes.
    """
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        found = [run for run in pool.map(lambda name: end_of(output, name), run_ids(output)) if run is not None]
    return sorted(found, key=lambda run: run.sequence)


def end_of(output: Place, run_id: str) -> Published | None:
    """What a run's _SUCCESS says; None if there is none. Raises UserError as ``published`` does."""
    marker = run_folder(output, run_id).child(SUCCESS)
    if not marker.exists():
        return None
    try:
        said = _Said.model_validate_json(marker.read())
    except ValidationError:
        raise UserError(
            f"{marker.uri} does not say which run of its folder it was the end of: another version wrote it; "
            "set another --output.path"
        ) from None
    return Published(run_id, said.sequence, said.manifest_sha256)


def publish(output: Place, run_id: str, manifest: bytes) -> Published:
    """Make a run the last of its folder, visible to those who read it. One driver at a time may do so (lease.py).

    manifest: the content of its file, which is written.
    """
    sequence = max((run.sequence for run in published(output)), default=0) + 1
    run = Published(run_id, sequence, hashlib.sha256(manifest).hexdigest())
    content = {"sequence": run.sequence, "manifest_sha256": run.manifest_sha256}
    run_folder(output, run_id).child(SUCCESS).write_patiently(json.dumps(content).encode() + b"\n")
    return run
