"""The snapshot that jobs.fetch left in a folder."""

from __future__ import annotations

import json
from typing import Any

from pipeline.errors import UserError
from pipeline.io.location import Location

POINTER, SNAPSHOTS = "_fetched.json", "_snapshots"
"""In a folder that jobs.fetch writes: which of its snapshots is the last whole one, and where they lie, hidden till then."""


def current_snapshot(root: Location) -> Location:
    """The last snapshot that jobs.fetch left whole in a folder; of another folder, itself."""
    found = read_pointer(root)
    return root if found is None else root.child(SNAPSHOTS).child(found["folder"])


def read_pointer(root: Location) -> dict[str, Any] | None:
    """What jobs.fetch wrote of the snapshot that it left whole; None in another folder."""
    pointer = root.child(POINTER)
    if not pointer.exists():
        return None
    try:
        found = json.loads(pointer.read())
        return {"folder": str(found["folder"]), "rows": int(found["rows"]), "request": dict(found["request"])}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{pointer.uri} is broken; remove it and run jobs.fetch again, or set {root.option}") from None
