"""Base of the records that a run writes as JSON."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Stored(BaseModel):
    """A record whose JSON keys are fixed by the output format.

    A renamed field keeps its key as an alias; code uses the field's name. Docstrings of fields describe them in JSON schemas.
    """

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True, use_attribute_docstrings=True)
