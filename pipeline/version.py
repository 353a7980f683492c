"""Versions of this package and of the packages that results depend on, for manifests, model cards and evaluations."""

from __future__ import annotations

import contextlib
import platform
from importlib import metadata

__version__ = "0.1.0"

_PACKAGES = ("torch", "ray", "pyarrow", "sentencepiece", "rouge-score", "sacrebleu")


def versions() -> dict[str, str]:
    # A job may run from a checkout, so this package is not looked up among the installed packages.
    installed = {"nightshift": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed
