"""Joining Ray: the cluster that a job was submitted to, or one of this machine's own."""

from __future__ import annotations

import gc
import logging
import os
import re
import socket
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

import ray
import ray.data
from ray._private.state import available_resources_per_node
from ray._private.utils import get_num_cpus
from ray.data import DataContext
from ray.exceptions import RayError

from pipeline.errors import Stopped, UserError, describe_error

ACCELERATOR = "accelerator_type:"
"""Begins the resource that a node with accelerators has, by Ray's name for their kind."""

_JOIN_TIMEOUT_S = 10.0
_POLL_S = 0.5


def connect() -> None:
    """Connect to the cluster that ``RAY_ADDRESS`` names (``ray job submit`` sets it), else start Ray on this machine.

    On the screen Ray then shows errors alone. (One is none: its C++ side calls it an error that the actors of a pool take
    their arguments from the object store, which all of Ray Data's do.) Those of Ray Data, tracebacks of many pages, stay in
    its log file: they are raised too, and the job tells them.

    Raises:
        UserError: there is no cluster at ``RAY_ADDRESS``.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS") or "local"
        # Two CPUs at least, however few there are: tasks that read and write ask for some beside those who work. A cluster that
        # lives as long as the job has no use for a dashboard, whose ten processes start for seconds.
        cpus = max(2, available_cpus())
        own: dict[str, Any] = (
            {"num_cpus": cpus, "include_dashboard": False, "_system_config": _private_cluster_options(cpus)}
            if address == "local"
            else {}
        )
        host, _, port = address.rpartition("/")[2].rpartition(":")
        try:
            if port.isdigit():  # Ray itself would go on trying for a quarter of an hour
                socket.create_connection((host.strip("[]"), int(port)), timeout=_JOIN_TIMEOUT_S).close()
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **own)
        except Exception as error:  # which kinds there are hangs on the form of the address
            if address == "local":
                raise
            raise UserError(
                f"cannot join a Ray cluster at {address}: {describe_error(error)}; set RAY_ADDRESS and, if the cluster needs "
                "a token, RAY_AUTH_TOKEN_PATH, or unset RAY_ADDRESS to use this machine"
            ) from None
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)
    # It says of a small input that there are more actors than windows.
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _private_cluster_options(cpus: int) -> dict[str, Any]:
    """What Ray's processes are told where they serve one job alone.

    A process that has read stays for one that writes, since its start takes longer than many a task does; and nobody asks what
    tasks there were, of which Ray would keep an account that grows.
    """
    return {"num_workers_soft_limit": 4 * cpus, "task_events_report_interval_ms": 0}


def available_cpus() -> int:
    """The CPUs of this machine, or of this container where it may use fewer."""
    return int(get_num_cpus(override_docker_cpu_warning=True))


def nodes() -> list[dict[str, float]]:
    """The resources of each node that is alive, by name."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def total_resource(resource: str) -> float:
    """How much of a resource, such as ``CPU``, the cluster's nodes have together."""
    return float(ray.cluster_resources().get(resource, 0.0))  # type: ignore[no-untyped-call]


def format_resources(resources: Mapping[str, float]) -> str:
    """Resources in words; of a kind of accelerator the amount means nothing."""
    return " and ".join(name if name.startswith(ACCELERATOR) else f"{amount:g} {name}" for name, amount in resources.items())


def capacity(node: Mapping[str, float], each: Mapping[str, float]) -> int:
    """How many find room on a node that has, or has free, so much of each resource; each takes what is said of it."""
    return int(min((node.get(name, 0.0) / amount + 1e-6 for name, amount in each.items()), default=1e6))


def wait_for_capacity(each: Mapping[str, float], number: int, beside: float, seconds: float) -> None:
    """Wait until a number of actors, which take so much each, find room, and some CPU is free beside them.

    Raises:
        UserError: they still do not after so many seconds, or never will; says how many do.
    """
    deadline = time.monotonic() + seconds
    while True:
        free = list(available_resources_per_node().values())  # type: ignore[no-untyped-call]
        room = min(number, sum(capacity(node, each) for node in free))
        cpus = sum(node.get("CPU", 0.0) for node in free)
        if room == number and cpus >= number * each.get("CPU", 0.0) + beside - 1e-6:
            return
        if time.monotonic() > deadline:
            told = format_resources(each)
            raise UserError(
                f"the run needs {number} actors of {told} each, and {beside:g} CPU beside them; after {seconds:g} s there is "
                f"room for {room} of them, with {cpus:g} CPUs free in all: other jobs hold the rest; wait for them, start more "
                "nodes, or set --resources.actors lower, or --resources.wait_s higher"
            )
        gc.collect()  # a run that failed in this process may hold its actors in a cycle of objects
        time.sleep(_POLL_S)


T = TypeVar("T")


def chunk_by_weight(items: Iterable[T], weight: Callable[[T], int], most: int, most_items: int = 256) -> Iterator[list[T]]:
    """Items for one task each, in order: each but the last just reaches the most weight, or has so many items."""
    some, weighs = list[T](), 0
    for item in items:
        some.append(item)
        weighs += weight(item)
        if weighs >= most or len(some) == most_items:
            yield some
            some, weighs = [], 0
    if some:
        yield some


def as_refs(refs: Any) -> list[Any]:
    """What a task returns, of one value too."""
    return refs if isinstance(refs, list) else [refs]


def to_user_error(error: RayError) -> UserError | Stopped:
    """A task's UserError as it was raised there; anything else as Stopped. Ray hands on the text of either alone."""
    text = str(error).partition("\n\nThe above exception was the direct cause")[0].strip()
    said = re.findall(r"^[\w.]+: .+", text, re.MULTILINE) or text.splitlines() or [type(error).__name__]
    kind, _, message = said[-1].partition(": ")
    return UserError(message) if kind == f"{UserError.__module__}.{UserError.__name__}" else Stopped(said[-1])


LIGHT_CPUS = 0.25
"""CPUs asked for by a task that reads, tokenizes or writes: these mostly wait."""
