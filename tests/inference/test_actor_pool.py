"""The pool has as many actors as the cluster has room for, and errors name the option to change."""

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


def make_pool(nodes: list[dict[str, float]], **options: Any) -> ActorPool:
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
def test_one_cpu_stays_free_wherever_actors_are_placed(nodes: list[float], actors: int, share: float) -> None:
    assert cpu_share(nodes, actors) == share
    assert all(free >= 1 for free in most_free_cpus(nodes, actors, share))
    # A larger share would not leave one free.
    assert share == 1.0 or not all(free >= 1 for free in most_free_cpus(nodes, actors, share + 0.01))


def most_free_cpus(nodes: list[float], actors: int, share: float) -> Iterator[float]:
    """Yield the free CPUs of the emptiest node, for each way to place the actors."""
    for placed in itertools.product(range(actors + 1), repeat=len(nodes)):
        free = [round(cpus - share * number, 6) for cpus, number in zip(nodes, placed, strict=True)]
        if sum(placed) == actors and min(free) >= 0:
            yield max(free)


@pytest.mark.parametrize(
    ("nodes", "options", "actors", "gpus"),
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
def test_pool_has_as_many_actors_as_fit(
    nodes: list[dict[str, float]], options: dict[str, Any], actors: int, gpus: float
) -> None:
    pool = make_pool(nodes, **options)
    assert (pool.max_actors, pool.gpus) == (actors, gpus)
    assert pool.min_actors == options.get("min_actors", actors)


def test_actors_ask_for_the_configured_resources() -> None:
    pool = make_pool([T4], accelerator_type="T4", gpus_per_actor=0.5, min_actors=1, custom_resources={"nightly": 1})
    assert pool.request == {"GPU": 0.5, "nightly": 1.0, "accelerator_type:T4": 0.001}
    assert pool.ray_options["resources"] == {"nightly": 1.0, "accelerator_type:T4": 0.001}
    assert "runtime_env" in make_pool([CPUS]).ray_options


@pytest.mark.parametrize(
    ("nodes", "options", "message"),
    [
        ([{"memory": 1.0}], {}, "has a CPU;"),
        ([CPUS], {"use_gpu": True}, "room for 0; .*use_gpu"),
        ([H100], {"actors": 9}, r"room for 8; .*--resources\.actors"),
        ([H100], {"actors": 20, "gpus_per_actor": 0.5}, "room for 16"),
        ([H100], {"min_actors": 9}, "9 actors"),
        ([CPUS], {"actors": 2, "min_actors": 3}, r"--resources\.min_actors is 3, .* 2 actors"),
        ([CPUS], {"actors": 10_000}, "10000 actors"),
        ([CPUS], {"actors": 100, "min_actors": 2}, "16 CPUs"),
        ([CPUS, {"nightly": 1.0}], {"custom_resources": {"nightly": 1}}, "a CPU and 1 nightly"),
        ([{**CPUS, "nightly": 1.0}], {"custom_resources": {"nightly": 1}, "actors": 2}, "2 actors"),
        (
            [H100, T4],
            {"accelerator_type": "B200"},
            "accelerator_type:B200 .*accelerator_type:H100, accelerator_type:T4, nightly",
        ),
        ([CPUS], {"custom_resources": {"quantum": 1}}, r"1 quantum .*--resources\.custom_resources"),
    ],
)
def test_errors_name_what_does_not_fit(nodes: list[dict[str, float]], options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_pool(nodes, **options)
