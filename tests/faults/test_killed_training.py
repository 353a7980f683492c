"""A training whose processes are killed goes on from its last checkpoint, and ends as if it had never been disturbed."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from nodes import three_nodes
from processes import processes_titled
from safetensors.torch import load_file

from pipeline.config.train import TrainConfig
from pipeline.errors import Stopped
from pipeline.training.distributed import train


def config(pairs: Path, output: Path) -> dict[str, Any]:
    """60 steps, with a validation and so a checkpoint after every few of them."""
    return {
        "data": {"train": f"{pairs}/train", "dev": f"{pairs}/dev", "tokenizer": f"{pairs}/tokenizer.model", "window_rows": 70},
        "model": {"embedding_size": 16, "hidden_size": 16, "bidirectional": False, "dropout": 0.2},
        "training": {
            "epochs": None,
            "max_steps": 60,
            "token_budget": 100,
            "warmup_steps": 10,
            "validate_minutes": 0.002,
            "validate_rows": 10,
            "best_by": "dev_loss",
            "precision": "float32",
        },
        "scaling": {"num_workers": 2, "threads": 1, "max_restarts": 0},
        "output": {"path": str(output)},
    }


def kill_the_driver(killed: dict[str, Any], tmp_path: Path) -> int:
    """Once it has told of a validation; the step of that."""
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(killed))
    command = [sys.executable, "-m", "jobs.train", "--config", str(tmp_path / "train.yaml")]
    victim = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True)
    assert victim.stdout is not None
    told = next((line for line in victim.stdout if "dev loss" in line), None)
    assert told is not None, "the training ended before it could be killed"
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    return int(told.split("step")[1].split()[0])


@pytest.mark.faults
@pytest.mark.parametrize("driver_too", [False, True])
def test_kill_a_worker_and_run_again(
    command_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver_too: bool
) -> None:
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # how often Ray Train takes note of a checkpoint
    undisturbed, killed = config(command_pairs, tmp_path / "undisturbed"), config(command_pairs, tmp_path / "killed")
    # Validations need not be at the same steps: they leave no trace in what is learnt.
    undisturbed["training"] |= {"validate_minutes": 60.0}
    train(TrainConfig.model_validate(undisturbed), lambda _: None)

    kept = kill_the_driver(killed, tmp_path) if driver_too else 0

    starts = []

    def kill_a_worker(record: dict[str, Any]) -> None:
        if record["kind"] == "start":
            starts.append(record["step"])
        if record["kind"] == "validation" and record["step"] > starts[0] + 5:
            [worker, _] = processes_titled("RayTrainWorker")
            os.kill(worker, signal.SIGKILL)

    with pytest.raises(Stopped, match=r"worker \d was lost: its worker process has died\nRun the same command again"):
        train(TrainConfig.model_validate(killed), kill_a_worker)
    assert kept <= starts[0] < 60, "what was shown is kept"

    trained = train(TrainConfig.model_validate(killed), lambda record: starts.append(record["step"]))
    assert starts[0] < starts[1] < 60
    assert trained.last["step"] == 60
    *_, last = sorted((tmp_path / "killed").glob("checkpoints/checkpoint_*/bundle/model.safetensors"))
    [expected] = (tmp_path / "undisturbed").glob("checkpoints/checkpoint_*/bundle/model.safetensors")
    weights, expected_weights = load_file(last), load_file(expected)
    assert all(weights[name].equal(expected_weights[name]) for name in expected_weights)


class Curve:
    """The last record of each step, in whose course workers are killed at random, so many of them.

    steps: loss and pairs seen. kills: so far.
    """

    def __init__(self, kills: int) -> None:
        self._most, self._choice, self._due = kills, random.Random(1), 20
        self.steps, self.kills = dict[int, tuple[float, int]](), 0

    def add(self, record: dict[str, Any]) -> None:
        if record["kind"] == "start":
            self._due = max(self._due, record["step"] + self._choice.randint(1, 40))
        if record["kind"] != "step":
            return
        self.steps[record["step"]] = record["loss"], record["pairs_seen"]
        if record["step"] >= self._due and self.kills < self._most and len(workers := processes_titled("RayTrainWorker")) == 2:
            os.kill(self._choice.choice(workers), signal.SIGKILL)
            self.kills += 1
            self._due = record["step"] + self._choice.randint(1, 40)


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_workers_killed_twenty_times_leave_no_trace(
    command_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    curves = []
    for name, kills in (("undisturbed", 0), ("killed", 20)):
        options = config(command_pairs, tmp_path / name)
        options["training"] |= {"max_steps": 600, "report_seconds": 0, "validate_minutes": 0.01}
        options["scaling"] |= {"max_restarts": kills}
        curve = Curve(kills)
        trained = train(TrainConfig.model_validate(options), curve.add)
        assert trained.last["step"] == 600
        assert curve.kills == kills
        curves.append(curve.steps)
    undisturbed, disturbed = curves
    assert disturbed.keys() == undisturbed.keys() == set(range(1, 601))
    # A step's loss tells its pairs from others, and so does their number.
    apart = [abs(disturbed[step][0] - undisturbed[step][0]) for step in undisturbed]
    assert max(apart) < 1e-4
    assert [pairs for _, pairs in disturbed.values()] == [pairs for _, pairs in undisturbed.values()]
    print(f"20 kills, the losses of 600 steps at most {max(apart):.1e} nat a token apart")


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_node_goes_and_comes_back(command_pairs: Path, tmp_path: Path) -> None:
    options = config(command_pairs, tmp_path / "out")
    options["training"] |= {"max_steps": None, "epochs": 300, "validate_minutes": 0.05, "report_seconds": 1}
    options["scaling"] |= {"num_workers": 3, "min_workers": 1, "placement": "SPREAD", "max_restarts": 5}
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(options))
    with three_nodes(cpus=1) as cluster:
        job = subprocess.Popen(
            [sys.executable, "-m", "jobs.train", "--config", str(tmp_path / "train.yaml")],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **cluster.environment, "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"},
        )
        assert job.stdout is not None
        told, groups = [], []
        for line in job.stdout:
            told.append(line)
            if found := re.search(r"on (\d) × cpu", line):
                groups.append(int(found[1]))
            if "dev loss" in line and groups == [3]:
                cluster.nodes.pop().kill()
                groups.append(-1)
            if "dev loss" in line and groups == [3, -1, 2]:
                cluster.start_node()
                groups.append(-1)
        assert job.wait() == 0, "".join(told)
    assert [group for group in groups if group > 0] == [3, 2, 3], "".join(told)
    records = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text().splitlines()]
    pairs = pq.read_table(command_pairs / "train").num_rows
    assert records[-1]["pairs_seen"] == 300 * pairs
    assert records[-1]["exact_match"] > 90
