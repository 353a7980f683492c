"""A training whose processes are killed goes on from its last checkpoint, and ends as if it had never been disturbed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import processes_titled
from safetensors.torch import load_file

from pipeline.config import TrainConfig
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
        "scaling": {"num_workers": 2, "threads": 1},
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
