"""The version of this package, and versions that a result depends on, as manifests, model cards and evaluations list them."""

from __future__ import annotations

import contextlib
import platform
from importlib import metadata

__version__ = "0.1.0"

_PACKAGES = ("torch", "ray", "pyarrow", "sentencepiece", "rouge-score", "sacrebleu")


def versions() -> dict[str, str]:
    """Return the versions of this package, Python and the packages that results depend on, by name.

    A job may run from a checkout, so this package's version is not looked up among installed packages.
    """
    found = {"nightshift": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
