"""Joining Ray: the cluster that a job was submitted to, or one of this machine's own."""

from __future__ import annotations

import logging
import os

import ray
from ray.data import DataContext


def connect() -> None:
    """Connect to the cluster that ``RAY_ADDRESS`` names (``ray job submit`` sets it), else start Ray on this machine.

    Quietens what Ray prints of itself; errors still show.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        ray.init(logging_level=logging.WARNING, log_to_driver=False)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def total(resource: str) -> float:
    """How much of a resource, such as ``CPU``, the cluster's nodes have together."""
    return float(ray.cluster_resources().get(resource, 0.0))
