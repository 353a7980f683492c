"""The config.json of a bundle, with valid weights and a valid tokenizer."""

from __future__ import annotations

import contextlib

from pipeline.config.types import SAMPLE
from pipeline.errors import UserError
from pipeline.model.bundle import CONFIG, bundle_from_files
from targets.bundle_weights import small_bundle


def seeds() -> list[bytes]:
    """Return that of the small bundle, twice as often as the shipped one."""
    return [small_bundle()[CONFIG], small_bundle()[CONFIG], (SAMPLE / "model" / CONFIG).read_bytes()]


def target(data: bytes) -> None:
    """Load the bundle, or raise UserError."""
    with contextlib.suppress(UserError):
        bundle_from_files({**small_bundle(), CONFIG: data}, "bundle")
