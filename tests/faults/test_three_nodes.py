"""A run in a cluster of three nodes: it has an actor on each."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
from nodes import three_nodes
from stage import Command, difference, rows_of, write_store

pytestmark = pytest.mark.faults


def test_an_actor_on_every_node(tmp_path: Path, abstracts: list[str]) -> None:
    store = write_store(tmp_path / "in", abstracts, 3)
    options = ["--resources.window_rows=10", "--resources.threads=1", "--resources.token_budget=16384"]
    here = Command(store, tmp_path / "here", [*options, "--resources.actors=1"])
    here.finish()
    with three_nodes(cpus=2) as cluster:
        there = Command(store, tmp_path / "there", [*options, "--resources.actors=3"], list(cluster.environment.items()))
        process, raylets = there.start(), set[int]()
        while process.poll() is None:
            for actor in cluster.workers("SummarizeWindow"):
                try:
                    raylets.add(actor.ppid())
                except psutil.Error:
                    continue
            time.sleep(0.2)
        assert process.returncode == 0, process.communicate()[0]
        assert raylets == {node.pid for node in cluster.nodes}
    assert len(rows_of(tmp_path / "there", "summaries")) == len(abstracts)
    assert difference(tmp_path / "there", tmp_path / "here").is_none
