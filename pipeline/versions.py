"""Versions that a result depends on, as manifests, model cards and evaluations note them."""

from __future__ import annotations

import contextlib
import platform
from importlib import metadata

from pipeline import __version__

_PACKAGES = ("torch", "ray", "pyarrow", "sentencepiece", "rouge-score", "sacrebleu")


def versions() -> dict[str, str]:
    """Of this package (which need not be installed: a job may run from its source), Python, and what of these is there."""
    found = {"nightshift": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
