"""The actors of a run: how many, and what each takes of which nodes."""

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

_MARKER_AMOUNT = 0.001
"""Of a resource that says what a node is, which every actor there may take some of."""


@dataclass(frozen=True)
class ActorPool:
    """A pool: fewest actors to begin with, and the number that it may grow to. Each takes of the cluster what is said here."""

    number: int
    fewest: int
    cpus: float
    gpus: float
    threads: int
    custom: Mapping[str, float]

    @property
    def ray_options(self) -> dict[str, Any]:
        """What one asks Ray for."""
        options = {"num_cpus": self.cpus, "num_gpus": self.gpus, "resources": dict(self.custom)}
        return options if self.gpus else {**options, "runtime_env": {"env_vars": KEEP_FREED_MEMORY}}

    @property
    def each(self) -> dict[str, float]:
        """What one takes, by resource."""
        taken = {"CPU": self.cpus, "GPU": self.gpus, **self.custom}
        return {name: amount for name, amount in taken.items() if amount}


def wait_for_actors(wanted: Resources) -> ActorPool:
    """Join the cluster and wait for room for the actors.

    Raises:
        UserError: there is none, for as many.
    """
    cluster.connect()
    actors = plan_pool(wanted, cluster.nodes())
    cluster.wait_for_capacity(actors.each, actors.fewest, LIGHT_CPUS, wanted.wait_s)
    return actors


def plan_pool(wanted: Resources, nodes: Sequence[Mapping[str, float]]) -> ActorPool:
    """The pool for a cluster of nodes, each with its resources by name.

    Raises:
        UserError: they have no room for it.
    """
    custom = dict(wanted.custom_resources)
    if wanted.accelerator_type:
        custom[f"{cluster.ACCELERATOR}{wanted.accelerator_type}"] = _MARKER_AMOUNT
    fit = [node for node in nodes if all(node.get(name, 0.0) >= amount for name, amount in custom.items())]
    if not fit:
        there = ", ".join(sorted({name for node in nodes for name in node if _is_custom(name)})) or "none of that kind"
        raise UserError(
            f"no node of the cluster has {cluster.format_resources(custom)}: they have {there}; "
            "set --resources.accelerator_type or custom_resources"
        )
    if not any(node.get("CPU") for node in fit):
        raise UserError(
            f"no node of the cluster has a CPU{' and what the actors need' if custom else ''}; wait for one, or start it"
        )
    has_gpus = any(node.get("GPU") for node in fit)
    use_gpu = has_gpus if wanted.use_gpu is None else wanted.use_gpu
    number, cpus = (_gpu_actors if use_gpu else _cpu_actors)(wanted, fit, custom)
    fewest = wanted.min_actors or number
    if fewest > number:
        raise UserError(f"the pool begins with {fewest} actors and has {number} at most; set --resources.min_actors lower")
    all_cpus = sum(node.get("CPU", 0.0) for node in fit)
    threads = wanted.threads or max(1, int(all_cpus) // number)
    return ActorPool(number, fewest, cpus, wanted.gpus_per_actor if use_gpu else 0.0, threads, custom)


def _gpu_actors(wanted: Resources, nodes: Sequence[Mapping[str, float]], custom: Mapping[str, float]) -> tuple[int, float]:
    """How many actors, and the CPUs of each: none, since it is the GPUs that bound how many there are."""
    on_one = int(1 / wanted.gpus_per_actor + 1e-9)
    room = sum(min(int(node.get("GPU", 0.0)) * on_one, cluster.capacity(node, custom)) for node in nodes)
    number = wanted.actors or room
    if not room or (wanted.min_actors or number) > room:
        fewest = wanted.min_actors or number or "the"
        raise UserError(
            f"{fewest} actors need {wanted.gpus_per_actor:g} GPU each and the cluster has room for {room}; "
            "set --resources.actors, min_actors, gpus_per_actor or use_gpu"
        )
    return number, 0.0


def _cpu_actors(wanted: Resources, nodes: Sequence[Mapping[str, float]], custom: Mapping[str, float]) -> tuple[int, float]:
    """How many actors, and the CPUs of each."""
    nodes = [node for node in nodes if node.get("CPU")]
    cpus, room = sorted(node["CPU"] for node in nodes), sum(cluster.capacity(node, custom) for node in nodes)
    number = wanted.actors or min(int(sum(cpus)) if cpus[-1] > 1 else max(1, len(cpus) - 1), room)
    if wanted.min_actors and number > sum(cpus):
        # Nothing would keep Ray from placing them all on the cores that there are.
        raise UserError(
            f"a pool on CPUs grows no further than the {sum(cpus):g} cores there are; set --resources.actors to that"
        )
    share = cpu_share(cpus, number)
    if share == 0 or number > room:
        raise UserError(f"{number} actors do not fit beside a free CPU on {sum(cpus):g} CPUs; set --resources.actors")
    return number, share


def _is_custom(name: str) -> bool:
    return name.startswith(cluster.ACCELERATOR) or (
        ":" not in name and name not in ("CPU", "GPU", "memory", "object_store_memory")
    )


def cpu_share(nodes: Sequence[float], actors: int) -> float:
    """CPUs that each actor asks for, in hundredths, one at most; 0 if there are too many actors.

    They hold them to the end. Wherever Ray puts them, one node or another keeps a whole CPU free: for the tasks that read and
    write, without which nothing would ever start.

    Args:
        nodes: the CPUs of each.
    """
    for percent in range(100, 0, -1):
        fewest_that_leave_none = sum(math.floor(100 * (cpus - 1)) // percent + 1 for cpus in nodes)
        if actors < fewest_that_leave_none:
            return percent / 100
    return 0.0
