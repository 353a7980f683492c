"""Clusters that deploy/cluster/cluster.sh starts on this machine, and what tests/faults/ has to compare runs with."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "faults"))

from machines import Machine, machines


@pytest.fixture(scope="module")
def head() -> Iterator[Machine]:
    """A cluster of a head alone."""
    with machines([2]) as [head]:
        yield head


@pytest.fixture(scope="module")
def three() -> Iterator[list[Machine]]:
    """A head and two workers."""
    with machines([2, 1, 1]) as started:
        yield started
