"""A run on a cluster of three nodes has an actor on each of them."""

from __future__ import annotations

import time
from pathlib import Path

import psutil
import pytest
from ray_cluster import three_nodes
from summarize_command import SummarizeCommand, compare_outputs, read_rows, write_documents

pytestmark = pytest.mark.faults


def test_actors_on_every_node(tmp_path: Path, abstracts: list[str]) -> None:
    documents = write_documents(tmp_path / "in", abstracts, 3)
    options = ["--resources.window_rows=10", "--resources.threads=1", "--resources.token_budget=16384"]
    SummarizeCommand(documents, tmp_path / "local", [*options, "--resources.actors=1"]).finish()
    with three_nodes(cpus=2) as cluster:
        environment = list(cluster.environment.items())
        command = SummarizeCommand(documents, tmp_path / "cluster", [*options, "--resources.actors=3"], environment)
        process, raylets = command.start(), set[int]()
        while process.poll() is None:
            for actor in cluster.workers("SummarizeWindow"):
                try:
                    raylets.add(actor.ppid())
                except psutil.Error:
                    continue
            time.sleep(0.2)
        assert process.returncode == 0, process.communicate()[0]
        assert raylets == {node.pid for node in cluster.nodes}
    assert len(read_rows(tmp_path / "cluster", "summaries")) == len(abstracts)
    assert compare_outputs(tmp_path / "cluster", tmp_path / "local").is_none
