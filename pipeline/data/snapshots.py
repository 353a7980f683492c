"""Find the current snapshot in a folder that jobs.fetch writes."""

from __future__ import annotations

import json
from typing import Any

from pipeline.errors import UserError
from pipeline.io.location import Location

POINTER = "_fetched.json"
"""File that names the last complete snapshot of its folder."""

SNAPSHOTS = "_snapshots"
"""Folder of the snapshots; the underscore hides incomplete ones from readers."""


def current_snapshot(root: Location) -> Location:
    """Return the last complete snapshot in a folder; return other folders unchanged."""
    pointer = read_pointer(root)
    return root if pointer is None else root.child(SNAPSHOTS).child(pointer["folder"])


def read_pointer(root: Location) -> dict[str, Any] | None:
    """Return the name, the number of rows and the request of the last complete snapshot; None if there is none."""
    file = root.child(POINTER)
    if not file.exists():
        return None
    try:
        pointer = json.loads(file.read())
        return {"folder": str(pointer["folder"]), "rows": int(pointer["rows"]), "request": dict(pointer["request"])}
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{file.uri} is broken; remove it and run jobs.fetch again, or set {root.option}") from None
