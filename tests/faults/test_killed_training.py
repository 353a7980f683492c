"""A training whose processes are killed resumes from its last checkpoint and gives the result of an uninterrupted one."""

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
from ray_cluster import local_worker_pids, three_nodes
from safetensors.torch import load_file
from trainings import run

from pipeline.config.train import TrainConfig
from pipeline.errors import Stopped
from pipeline.training.distributed import train
from pipeline.training.plan import plan_training


def config(pairs: Path, output: Path) -> dict[str, Any]:
    """Return options for 60 steps, with a validation, and so a checkpoint, every few steps."""
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


def kill_driver(options: dict[str, Any], tmp_path: Path) -> int:
    """Start a training, kill its driver once it has printed a validation, and return the step of that validation."""
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(options))
    command = [sys.executable, "-m", "jobs.train", "--config", str(tmp_path / "train.yaml")]
    victim = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True)
    assert victim.stdout is not None
    line = next((line for line in victim.stdout if "dev loss" in line), None)
    assert line is not None, "the training ended before it could be killed"
    os.kill(victim.pid, signal.SIGKILL)
    victim.wait()
    return int(line.split("step")[1].split()[0])


@pytest.mark.faults
@pytest.mark.parametrize(("driver_too", "from_parent"), [(False, False), (True, False), (True, True)])
def test_killed_training_resumes(
    command_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver_too: bool, from_parent: bool
) -> None:
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # how often Ray Train registers a checkpoint
    uninterrupted, killed = config(command_pairs, tmp_path / "uninterrupted"), config(command_pairs, tmp_path / "killed")
    if from_parent:
        parent = config(command_pairs, tmp_path / "parent")
        parent["training"] |= {"max_steps": 20}
        run(TrainConfig.model_validate(parent))
        for options in (uninterrupted, killed):
            options["model"]["init_from"] = f"{tmp_path}/parent/bundle"
    # Validations may come at other steps: they do not affect what is learned.
    uninterrupted["training"] |= {"validate_minutes": 60.0}
    run(TrainConfig.model_validate(uninterrupted))

    printed_step = kill_driver(killed, tmp_path) if driver_too else 0

    starts = []

    def kill_a_worker(record: dict[str, Any]) -> None:
        if record["kind"] == "start":
            starts.append(record["step"])
        if record["kind"] == "validation" and record["step"] > starts[0] + 5:
            [worker, _] = local_worker_pids("RayTrainWorker")
            os.kill(worker, signal.SIGKILL)

    with pytest.raises(Stopped, match=r"worker \d "):
        run(TrainConfig.model_validate(killed), kill_a_worker)
    assert printed_step <= starts[0] < 60, "a validation that was printed has its checkpoint"

    trained, _ = run(TrainConfig.model_validate(killed), lambda record: starts.append(record["step"]))
    assert starts[0] < starts[1] < 60
    assert trained.last["step"] == 60
    *_, last = sorted((tmp_path / "killed").glob("checkpoints/checkpoint_*/bundle/model.safetensors"))
    [expected] = (tmp_path / "uninterrupted").glob("checkpoints/checkpoint_*/bundle/model.safetensors")
    weights, expected_weights = load_file(last), load_file(expected)
    assert all(weights[name].equal(expected_weights[name]) for name in expected_weights)


class KillingRecorder:
    """Records each step of a training and kills workers at random steps.

    Attributes:
        steps: loss and pairs seen at each step.
        kills: number of kills so far.
    """

    def __init__(self, max_kills: int) -> None:
        self._max_kills, self._rng, self._next_kill = max_kills, random.Random(1), 20
        self.steps, self.kills = dict[int, tuple[float, int]](), 0

    def record(self, record: dict[str, Any]) -> None:
        if record["kind"] == "start":
            self._next_kill = max(self._next_kill, record["step"] + self._rng.randint(1, 40))
        if record["kind"] != "step":
            return
        self.steps[record["step"]] = record["loss"], record["pairs_seen"]
        if (
            record["step"] >= self._next_kill
            and self.kills < self._max_kills
            and len(workers := local_worker_pids("RayTrainWorker")) == 2
        ):
            os.kill(self._rng.choice(workers), signal.SIGKILL)
            self.kills += 1
            self._next_kill = record["step"] + self._rng.randint(1, 40)


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_twenty_killed_workers_do_not_change_a_training(
    command_pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    curves = []
    for name, kills in (("uninterrupted", 0), ("killed", 20)):
        options = config(command_pairs, tmp_path / name)
        options["training"] |= {"max_steps": 600, "report_seconds": 0, "validate_minutes": 0.01}
        options["scaling"] |= {"max_restarts": kills}
        recorder = KillingRecorder(kills)
        trained = train(plan_training(TrainConfig.model_validate(options)), recorder.record)
        assert trained.last["step"] == 600
        assert recorder.kills == kills
        curves.append(recorder.steps)
    uninterrupted, disturbed = curves
    assert disturbed.keys() == uninterrupted.keys() == set(range(1, 601))
    # The loss of a step depends on its pairs, and so does their number.
    differences = [abs(disturbed[step][0] - uninterrupted[step][0]) for step in uninterrupted]
    assert max(differences) < 1e-4
    assert [pairs for _, pairs in disturbed.values()] == [pairs for _, pairs in uninterrupted.values()]
    print(f"20 kills, the losses of 600 steps differ by at most {max(differences):.1e} nat per token")


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_training_adapts_to_a_lost_node_and_a_new_one(command_pairs: Path, tmp_path: Path) -> None:
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
        log, group_sizes = [], []
        for line in job.stdout:
            log.append(line)
            if match := re.search(r"on (\d) × cpu", line):
                group_sizes.append(int(match[1]))
            if "dev loss" in line and group_sizes == [3]:
                cluster.nodes.pop().kill()
                group_sizes.append(-1)
            if "dev loss" in line and group_sizes == [3, -1, 2]:
                cluster.start_node()
                group_sizes.append(-1)
        assert job.wait() == 0, "".join(log)
    assert [size for size in group_sizes if size > 0] == [3, 2, 3], "".join(log)
    records = [json.loads(line) for line in (tmp_path / "out/train.jsonl").read_text().splitlines()]
    pairs = pq.read_table(command_pairs / "train").num_rows
    assert records[-1]["pairs_seen"] == 300 * pairs
    assert records[-1]["exact_match"] > 90
