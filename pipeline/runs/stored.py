"""Base of what a run writes as JSON."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Stored(BaseModel):
    """A record whose keys in JSON are fixed by the format of outputs.

    A field that has been renamed since keeps its key as an alias. Code uses the field's name.
    """

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)
