"""Values that the options of several jobs are made of."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

SAMPLE = Path(__file__).parents[1] / "sample"


Precision = Literal["auto", "float32", "bfloat16", "float16"]


DecodingPrecision = Literal["auto", "float32", "bfloat16", "float16", "int8"]


Positive = Annotated[int, Field(gt=0)]


Share = Annotated[float, Field(ge=0.0, le=1.0)]


# A bundle's own words are checked before memory is taken for them: beyond these lies no network that anyone trains here.
Width = Annotated[int, Field(gt=0, le=1 << 16)]


Depth = Annotated[int, Field(gt=0, le=64)]


TokenCount = Annotated[int, Field(gt=0, le=1_000_000)]


BeamSize = Annotated[int, Field(gt=0, le=1000)]


RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _names_a_folder(run_id: str) -> str:
    if not RUN_ID.fullmatch(run_id):
        raise ValueError("names a folder: letters, digits, '.', '_' and '-' alone, please")
    return run_id


RunId = Annotated[str, AfterValidator(_names_a_folder)]
