"""Size the pool of actors: how many fit on the nodes of a cluster, and which resources each asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline import cluster
from pipeline.cluster import LIGHT_CPUS
from pipeline.config.summarize import Resources
from pipeline.errors import UserError
from pipeline.model.malloc import KEEP_FREED_MEMORY

_ACCELERATOR_AMOUNT = 0.001
"""Amount of the resource that names a node's accelerator: small, so that any number of actors may ask for it."""


@dataclass(frozen=True)
class ActorPool:
    """A pool that starts with ``min_actors`` and may grow to ``max_actors``. The resources are those of each actor."""

    max_actors: int
    min_actors: int
    cpus: float
    gpus: float
    threads: int
    custom_resources: Mapping[str, float]

    @property
    def ray_options(self) -> dict[str, Any]:
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "resources": dict(self.custom_resources)}
        return options if self.gpus else {**options, "runtime_env": {"env_vars": KEEP_FREED_MEMORY}}

    @property
    def request(self) -> dict[str, float]:
        amounts = {"CPU": self.cpus, "GPU": self.gpus, **self.custom_resources}
        return {name: amount for name, amount in amounts.items() if amount}


def wait_for_actors(resources: Resources) -> ActorPool:
    """Connect to Ray and wait until the cluster has room for the actors. Raises UserError if it never has."""
    cluster.connect()
    pool = plan_pool(resources, cluster.nodes())
    cluster.wait_for_capacity(pool.request, pool.min_actors, LIGHT_CPUS, resources.wait_s)
    return pool


def plan_pool(resources: Resources, nodes: Sequence[Mapping[str, float]]) -> ActorPool:
    """Return the pool for a cluster, given the resources of each node by name. Raises UserError if it does not fit."""
    custom = dict(resources.custom_resources)
    if resources.accelerator_type:
        custom[f"{cluster.ACCELERATOR}{resources.accelerator_type}"] = _ACCELERATOR_AMOUNT
    suitable = [node for node in nodes if all(node.get(name, 0.0) >= amount for name, amount in custom.items())]
    if not suitable:
        available = ", ".join(sorted({name for node in nodes for name in node if _is_custom(name)})) or "no such resources"
        raise UserError(
            f"no node of the cluster has {cluster.format_resources(custom)} (it has: {available}); "
            "set --resources.accelerator_type or --resources.custom_resources"
        )
    if not any(node.get("CPU") for node in suitable):
        needed = f" and {cluster.format_resources(custom)}" if custom else ""
        raise UserError(f"no node of the cluster has a CPU{needed}; wait for such a node, or add one")
    has_gpus = any(node.get("GPU") for node in suitable)
    use_gpu = has_gpus if resources.use_gpu is None else resources.use_gpu
    max_actors, cpus = (_gpu_actors if use_gpu else _cpu_actors)(resources, suitable, custom)
    min_actors = resources.min_actors or max_actors
    if min_actors > max_actors:
        raise UserError(f"--resources.min_actors is {min_actors}, but the pool has at most {max_actors} actors; set it lower")
    threads = resources.threads or max(1, int(sum(node.get("CPU", 0.0) for node in suitable)) // max_actors)
    return ActorPool(max_actors, min_actors, cpus, resources.gpus_per_actor if use_gpu else 0.0, threads, custom)


def _gpu_actors(resources: Resources, nodes: Sequence[Mapping[str, float]], custom: Mapping[str, float]) -> tuple[int, float]:
    """Return how many actors there are at most, and the CPUs of each: none, since GPUs limit their number."""
    per_gpu = int(1 / resources.gpus_per_actor + 1e-9)
    room = sum(min(int(node.get("GPU", 0.0)) * per_gpu, cluster.capacity(node, custom)) for node in nodes)
    actors = resources.actors or room
    if not room or (resources.min_actors or actors) > room:
        needed = resources.min_actors or actors or "the"
        raise UserError(
            f"{needed} actors need {resources.gpus_per_actor:g} GPU each, but the cluster has room for {room}; set "
            "--resources.actors, --resources.min_actors, --resources.gpus_per_actor or --resources.use_gpu"
        )
    return actors, 0.0


def _cpu_actors(resources: Resources, nodes: Sequence[Mapping[str, float]], custom: Mapping[str, float]) -> tuple[int, float]:
    """Return how many actors there are at most, and the CPUs of each."""
    nodes = [node for node in nodes if node.get("CPU")]
    cpus, room = sorted(node["CPU"] for node in nodes), sum(cluster.capacity(node, custom) for node in nodes)
    actors = resources.actors or min(int(sum(cpus)) if cpus[-1] > 1 else max(1, len(cpus) - 1), room)
    if resources.min_actors and actors > sum(cpus):
        # With less than a CPU each, Ray would start them all on the CPUs that it has now.
        raise UserError(
            f"a pool on CPUs cannot grow beyond the {sum(cpus):g} CPUs of the cluster; set --resources.actors lower"
        )
    share = cpu_share(cpus, actors)
    if share == 0 or actors > room:
        raise UserError(f"{actors} actors and a free CPU do not fit on {sum(cpus):g} CPUs; set --resources.actors lower")
    return actors, share


def _is_custom(name: str) -> bool:
    return name.startswith(cluster.ACCELERATOR) or (
        ":" not in name and name not in ("CPU", "GPU", "memory", "object_store_memory")
    )


def cpu_share(node_cpus: Sequence[float], actors: int) -> float:
    """Return the CPUs that each actor asks for, in hundredths and at most 1; 0 if there are too many actors.

    Actors hold their CPUs to the end of the run. The share is the largest with which at least one node keeps a whole CPU free,
    wherever Ray places the actors: the tasks that read and write need it, and without them the run would never proceed.

    Args:
        node_cpus: CPUs of each node.
    """
    for percent in range(100, 0, -1):
        actors_to_fill_all = sum(math.floor(100 * (cpus - 1)) // percent + 1 for cpus in node_cpus)
        if actors < actors_to_fill_all:
            return percent / 100
    return 0.0
