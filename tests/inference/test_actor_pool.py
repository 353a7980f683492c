"""How many actors a cluster has room for, and what is said where it has none."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.config.summarize import Resources
from pipeline.errors import UserError
from pipeline.inference.actor_pool import ActorPool, cpu_share, plan_pool

CPUS = {"CPU": 16.0}
H100 = {"CPU": 16.0, "GPU": 8.0, "accelerator_type:H100": 1.0}
T4 = {"CPU": 4.0, "GPU": 1.0, "accelerator_type:T4": 1.0, "nightly": 3.0}


def pool(nodes: list[dict[str, float]], **options: Any) -> ActorPool:
    return plan_pool(Resources(**options), nodes)


@pytest.mark.parametrize(
    ("nodes", "actors", "share"),
    [
        ([2], 2, 0.5),
        ([2], 1, 1.0),
        ([1, 16], 17, 0.93),
        ([1, 1, 1], 2, 1.0),
        ([1, 2, 2], 5, 0.5),
        ([4, 4, 4], 12, 0.75),
        ([1], 1, 0.0),
        ([1, 1], 2, 0.0),
    ],
)
def test_wherever_actors_are_placed_a_cpu_stays_free(nodes: list[float], actors: int, share: float) -> None:
    assert cpu_share(nodes, actors) == share
    assert all(free >= 1 for free in most_free(nodes, actors, share))
    # And they ask for as much as they can.
    assert share == 1.0 or not all(free >= 1 for free in most_free(nodes, actors, share + 0.01))


def most_free(nodes: list[float], actors: int, share: float) -> Iterator[float]:
    """The CPUs left on the emptiest node, for each way to place the actors."""
    for placed in itertools.product(range(actors + 1), repeat=len(nodes)):
        free = [round(cpus - share * number, 6) for cpus, number in zip(nodes, placed, strict=True)]
        if sum(placed) == actors and min(free) >= 0:
            yield max(free)


@pytest.mark.parametrize(
    ("nodes", "options", "number", "gpus"),
    [
        ([CPUS], {}, 16, 0.0),
        ([CPUS, H100, T4], {}, 9, 1.0),
        ([CPUS, H100, T4], {"use_gpu": False}, 36, 0.0),
        ([H100, T4], {"gpus_per_actor": 0.5}, 18, 0.5),
        ([H100, T4], {"gpus_per_actor": 0.3}, 27, 0.3),
        ([H100, T4], {"accelerator_type": "T4"}, 1, 1.0),
        ([H100, T4], {"accelerator_type": "H100", "actors": 3}, 3, 1.0),
        ([H100, T4], {"custom_resources": {"nightly": 1.5}, "gpus_per_actor": 0.25}, 2, 0.25),
        ([CPUS, {"CPU": 16.0, "nightly": 2.0}], {"custom_resources": {"nightly": 1.0}}, 2, 0.0),
        ([H100], {"min_actors": 2, "actors": 100}, 100, 1.0),
        ([CPUS], {"min_actors": 2, "actors": 8}, 8, 0.0),
    ],
)
def test_as_many_actors_as_find_room(nodes: list[dict[str, float]], options: dict[str, Any], number: int, gpus: float) -> None:
    actors = pool(nodes, **options)
    assert (actors.number, actors.gpus) == (number, gpus)
    assert actors.fewest == options.get("min_actors", number)


def test_an_actor_takes_what_was_asked_for() -> None:
    actors = pool([T4], accelerator_type="T4", gpus_per_actor=0.5, min_actors=1, custom_resources={"nightly": 1})
    assert actors.each == {"GPU": 0.5, "nightly": 1.0, "accelerator_type:T4": 0.001}
    assert "runtime_env" in pool([CPUS]).ray_options
    assert actors.ray_options["resources"] == {"nightly": 1.0, "accelerator_type:T4": 0.001}


@pytest.mark.parametrize(
    ("nodes", "options", "message"),
    [
        ([{"memory": 1.0}], {}, "no node of the cluster has a CPU"),
        ([CPUS], {"use_gpu": True}, "the actors need 1 GPU each and the cluster has room for 0; .*use_gpu"),
        ([H100], {"actors": 9}, "9 actors need 1 GPU each and the cluster has room for 8; .*--resources.actors"),
        ([H100], {"actors": 20, "gpus_per_actor": 0.5}, "room for 16"),
        ([H100], {"min_actors": 9}, "9 actors need"),
        ([CPUS], {"actors": 2, "min_actors": 3}, "begins with 3 actors and has 2 at most"),
        ([CPUS], {"actors": 10_000}, "10000 actors do not fit"),
        ([CPUS], {"actors": 100, "min_actors": 2}, "a pool on CPUs grows no further than the 16 cores"),
        (
            [CPUS, {"nightly": 1.0}],
            {"custom_resources": {"nightly": 1}},
            "no node of the cluster has a CPU and what the actors need",
        ),
        ([{**CPUS, "nightly": 1.0}], {"custom_resources": {"nightly": 1}, "actors": 2}, "2 actors do not fit"),
        (
            [H100, T4],
            {"accelerator_type": "B200"},
            "accelerator_type:B200: they have accelerator_type:H100, accelerator_type:T4, nightly; set",
        ),
        ([CPUS], {"custom_resources": {"quantum": 1}}, "has 1 quantum: they have none of that kind; .*custom_resources"),
    ],
)
def test_no_room_is_said_with_what_to_set(nodes: list[dict[str, float]], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pool(nodes, **options)
