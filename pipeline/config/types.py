"""Types of option values that several jobs share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

SAMPLE = Path(__file__).parents[1] / "sample"
"""Folder of the shipped sample documents and model."""

Precision = Literal["auto", "float32", "bfloat16", "float16"]
DecodingPrecision = Literal["auto", "float32", "bfloat16", "float16", "int8"]

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]

# Upper limits reject a hostile bundle before memory is allocated for it; no network that is trained here reaches them.
Width = Annotated[int, Field(gt=0, le=1 << 16)]
Depth = Annotated[int, Field(gt=0, le=64)]
TokenCount = Annotated[int, Field(gt=0, le=1_000_000)]
BeamSize = Annotated[int, Field(gt=0, le=1000)]

RUN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _check_run_id(run_id: str) -> str:
    if not RUN_ID.fullmatch(run_id):
        raise ValueError("must be a folder name of letters, digits, '.', '_' and '-' that starts with a letter or digit")
    return run_id


def bundle_path(uri: str) -> str:
    """Return the location of a bundle as an option names it: ``sample`` stands for the shipped one."""
    return str(SAMPLE / "model") if uri == "sample" else uri


STYLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")


def _check_style(style: str) -> str:
    if not STYLE_NAME.fullmatch(style):
        raise ValueError("must be up to 32 letters, digits, '_' and '-', starting with a letter or digit")
    return style


StyleName = Annotated[str, AfterValidator(_check_style)]
"""Name of a style of summary."""

MAX_STYLES = 8
"""Styles of a model, at most: the number of style tokens in a tokenizer."""


def _check_styles(styles: list[str]) -> list[str]:
    if len(set(styles)) < len(styles):
        raise ValueError("a style is named twice")
    return styles


StyleNames = Annotated[list[StyleName], Field(max_length=MAX_STYLES), AfterValidator(_check_styles)]

RunId = Annotated[str, AfterValidator(_check_run_id)]
