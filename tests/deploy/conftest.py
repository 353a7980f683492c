"""Clusters that deploy/cluster/cluster.sh starts on this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from machines import Machine, machines


@pytest.fixture(scope="module")
def head() -> Iterator[Machine]:
    """A cluster that is only a head."""
    with machines([2]) as [head]:
        yield head


@pytest.fixture(scope="module")
def three_machines() -> Iterator[list[Machine]]:
    """A cluster of a head and two workers."""
    with machines([2, 1, 1]) as all_machines:
        yield all_machines
