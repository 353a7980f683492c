"""Versions that a result depends on, as manifests, model cards and evaluations note them."""

from __future__ import annotations

import platform
from importlib import metadata

from pipeline import __version__

_PACKAGES = ("torch", "ray", "pyarrow", "sentencepiece", "rouge-score", "sacrebleu")


def versions() -> dict[str, str]:
    """Of this package (which need not be installed: a job may run from its source), Python, and the packages it rests on."""
    return {
        "nightshift": __version__,
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in _PACKAGES},
    }
