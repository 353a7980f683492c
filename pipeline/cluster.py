"""Connect to Ray, ask for its resources, and divide work into tasks."""

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
"""Prefix of the resource that names the accelerators of a node."""

LIGHT_CPUS = 0.25
"""CPUs that a task which reads, tokenizes or writes asks for: such a task mostly waits."""

_CONNECT_TIMEOUT_S = 10.0
_POLL_S = 0.5
_MAX_CHUNK_ITEMS = 256
_TOLERANCE = 1e-6

T = TypeVar("T")


def connect() -> None:
    """Connect to the cluster at ``RAY_ADDRESS`` (``ray job submit`` sets it), or start Ray on this machine.

    Only Ray's own errors reach the screen. Ray Data's tracebacks go to its log file alone, since the job reports the error.
    Raises UserError if there is no cluster at ``RAY_ADDRESS``.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not ray.is_initialized():
        address = os.environ.get("RAY_ADDRESS") or "local"
        if address == "local":
            _start_local_cluster()
        else:
            _join_cluster(address)
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="The minimum number of concurrent actors")  # normal for a small input
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False


def _start_local_cluster() -> None:
    cpus = max(2, available_cpus())  # read and write tasks need a CPU besides the one of the actor
    system_config = {
        "num_workers_soft_limit": 4 * cpus,  # keep idle processes: starting one takes longer than many tasks do
        "task_events_report_interval_ms": 0,  # no history of tasks, which would grow
    }
    ray.init(
        "local",
        num_cpus=cpus,
        include_dashboard=False,  # its ten processes take seconds to start
        logging_level=logging.ERROR,
        log_to_driver=False,
        _system_config=system_config,
    )


def _join_cluster(address: str) -> None:
    host, _, port = address.rpartition("/")[2].rpartition(":")
    try:
        if port.isdigit():  # ray.init alone would try for a quarter of an hour
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
        ray.init(address, logging_level=logging.ERROR, log_to_driver=False)
    except Exception as error:  # the exception type depends on the form of the address
        raise UserError(
            f"cannot join a Ray cluster at {address}: {describe_error(error)}; set RAY_ADDRESS and, if the cluster needs "
            "a token, RAY_AUTH_TOKEN_PATH, or unset RAY_ADDRESS to use this machine"
        ) from None


def available_cpus() -> int:
    """Return the number of CPUs that this machine or container may use."""
    return int(get_num_cpus(override_docker_cpu_warning=True))


def nodes() -> list[dict[str, float]]:
    """Return the resources of each live node, by name."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]


def total_resource(resource: str) -> float:
    """Return the cluster's total of a resource such as ``CPU``."""
    return float(ray.cluster_resources().get(resource, 0.0))  # type: ignore[no-untyped-call]


def format_resources(resources: Mapping[str, float]) -> str:
    """Format resources for a message, such as "1 CPU and 2 GPU"; an accelerator type is shown without its amount."""
    return " and ".join(name if name.startswith(ACCELERATOR) else f"{amount:g} {name}" for name, amount in resources.items())


def capacity(node: Mapping[str, float], request: Mapping[str, float]) -> int:
    """Return how many actors with these resource requests fit on a node."""
    return int(min((node.get(name, 0.0) / amount + _TOLERANCE for name, amount in request.items()), default=1e6))


def wait_for_capacity(request: Mapping[str, float], actors: int, spare_cpus: float, timeout_s: float) -> None:
    """Wait until the free resources have room for some actors and leave a few CPUs free.

    Args:
        request: resources of each actor, by name.
        spare_cpus: CPUs for the tasks that feed the actors.

    Raises:
        UserError: there is not enough room after ``timeout_s``.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        free = list(available_resources_per_node().values())  # type: ignore[no-untyped-call]
        fitting = min(actors, sum(capacity(node, request) for node in free))
        free_cpus = sum(node.get("CPU", 0.0) for node in free)
        if fitting == actors and free_cpus >= actors * request.get("CPU", 0.0) + spare_cpus - _TOLERANCE:
            return
        if time.monotonic() > deadline:
            raise UserError(
                f"the run needs {actors} actors of {format_resources(request)} each, and {spare_cpus:g} more CPU; after "
                f"{timeout_s:g} s there is room for {fitting} of them, with {free_cpus:g} CPUs free in all; wait for other "
                "jobs to end, add nodes, lower --resources.actors or raise --resources.wait_s"
            )
        gc.collect()  # an earlier run in this process may keep its actors alive in a reference cycle
        time.sleep(_POLL_S)


def chunk_by_weight(
    items: Iterable[T], weight: Callable[[T], int], max_weight: int, max_items: int = _MAX_CHUNK_ITEMS
) -> Iterator[list[T]]:
    """Divide items into lists, in order; a list ends once it reaches ``max_weight`` or ``max_items``."""
    chunk, total = list[T](), 0
    for item in items:
        chunk.append(item)
        total += weight(item)
        if total >= max_weight or len(chunk) == max_items:
            yield chunk
            chunk, total = [], 0
    if chunk:
        yield chunk


def as_refs(refs: Any) -> list[Any]:
    """Return the references to a task's results as a list, even if the task has only one."""
    return refs if isinstance(refs, list) else [refs]


def to_user_error(error: RayError) -> UserError | Stopped:
    """Return the UserError that a task raised, or any other error as Stopped. Ray passes on only the text of either."""
    text = str(error).partition("\n\nThe above exception was the direct cause")[0].strip()
    lines = re.findall(r"^[\w.]+: .+", text, re.MULTILINE) or text.splitlines() or [type(error).__name__]
    error_type, _, message = lines[-1].partition(": ")
    return UserError(message) if error_type == f"{UserError.__module__}.{UserError.__name__}" else Stopped(lines[-1])


def translate_errors(action: Callable[[], T], hint: str = "") -> T:
    """Return the result of ``action``; raise an error of Ray as UserError or Stopped, the latter with a hint.

    The new error does not refer to Ray's, whose frames would keep actors alive, and their resources taken.
    """
    try:
        return action()
    except RayError as error:
        translated = to_user_error(error)
        if hint and isinstance(translated, Stopped):
            translated = Stopped(f"{translated}; {hint}")
    raise translated
