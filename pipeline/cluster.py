"""Joining Ray: the cluster that a job was submitted to, or one of this machine's own."""

from __future__ import annotations

import logging
import os
import warnings

import ray
import ray.data
from ray.data import DataContext


def connect() -> None:
    """Connect to the cluster that ``RAY_ADDRESS`` names (``ray job submit`` sets it), else start Ray on this machine.

    On the screen Ray then shows errors alone. (One is none: its C++ side calls it an error that the actors of a pool take
    their arguments from the object store, which all of Ray Data's do.)
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        # Two CPUs at least, however few there are: Ray Data's listing of the input asks for one beside those who work.
        cpus = None if "RAY_ADDRESS" in os.environ else max(2, os.cpu_count() or 1)
        ray.init(num_cpus=cpus, logging_level=logging.ERROR, log_to_driver=False)
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.ERROR)
    # Ray Data has no named parameter yet for what a failed task retries on, and warns of the general one.
    warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def cpus_of_nodes() -> list[float]:
    """The CPUs of each node that is alive and has any, fewest first."""
    nodes = [node["Resources"].get("CPU", 0.0) for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return sorted(float(cpus) for cpus in nodes if cpus)


def total(resource: str) -> float:
    """How much of a resource, such as ``CPU``, the cluster's nodes have together."""
    return float(ray.cluster_resources().get(resource, 0.0))  # type: ignore[no-untyped-call]
