"""A bundle's config.json, beside sound weights and a sound tokenizer."""

from __future__ import annotations

import contextlib

from pipeline.config.types import SAMPLE
from pipeline.errors import UserError
from pipeline.model.bundle import CONFIG, bundle_from_files
from targets.bundle_weights import small


def seeds() -> list[bytes]:
    """One that loads, and the shipped one."""
    return [small()[CONFIG], small()[CONFIG], (SAMPLE / "model" / CONFIG).read_bytes()]


def target(data: bytes) -> None:
    """Load it: a bundle or a UserError comes of it."""
    with contextlib.suppress(UserError):
        bundle_from_files({**small(), CONFIG: data}, "bundle")
