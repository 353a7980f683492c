"""``jobs.train`` as a user runs it: its output, its files, and its messages for invalid options."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from job import JobResult, job_runner

from pipeline.errors import EXIT_OK, EXIT_USER_ERROR

Train = Callable[..., JobResult]


@pytest.fixture(scope="module")
def few_pairs(command_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pairs to train on, and one to validate on."""
    folder = tmp_path_factory.mktemp("few")
    for split, rows in (("train", 5), ("dev", 1)):
        pq.write_table(pq.read_table(command_pairs / split).slice(0, rows), folder / f"{split}.parquet")
    return folder


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command_pairs: Path, few_pairs: Path) -> Train:
    """A function that runs the job on five pairs, by default for four epochs."""
    run = job_runner("train", monkeypatch, capsys)

    def train(output: Path, *options: str) -> JobResult:
        defaults = {
            "data.train": f"{few_pairs}/train.parquet",
            "data.dev": f"{few_pairs}/dev.parquet",
            "data.tokenizer": f"{command_pairs}/tokenizer.model",
            "model.embedding_size": "16",
            "model.hidden_size": "16",
            "training.epochs": "4",
            "training.report_seconds": "0",
            "training.precision": "float32",
            "scaling.threads": "1",
            "output.path": output.as_uri(),
        }
        return run(*(word for option, value in defaults.items() for word in (f"--{option}", value)), *options)

    return train


@pytest.mark.faults
def test_training_shows_its_progress_and_writes_a_bundle(train: Train, tmp_path: Path) -> None:
    done = train(tmp_path, "--scaling.num_workers", "2")
    assert done.status == EXIT_OK, done.err
    lines = done.out.splitlines()
    assert "parameters in float32 on 2 × cpu" in done.out
    assert [line.split("loss")[0].split()[-2:] for line in lines if "tokens/s" in line] == [
        ["step", str(step)] for step in (1, 2, 3, 4)
    ]
    for part in ("min left", "dev loss", "exact match"):
        assert part in done.out
    assert f"trained: {tmp_path.as_uri()}/bundle" in lines
    bundle = {path.name for path in (tmp_path / "bundle").iterdir()}
    assert bundle == {"model.safetensors", "tokenizer.model", "config.json", "README.md"}
    records = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [record["kind"] for record in records] == ["start", *["step"] * 4, "validation"]
    assert records[-1]["pairs_seen"] == 4 * 5
    page = (tmp_path / "training.html").read_text()
    assert "Finished" in page
    assert records[-1]["samples"][0]["source"] in page
    [events] = (tmp_path / "tensorboard").iterdir()
    assert events.name.startswith("events.out.tfevents.")

    again = train(tmp_path)
    assert again.status == EXIT_OK
    assert "already finished" in again.out
    assert len((tmp_path / "train.jsonl").read_text().splitlines()) == len(records)


@pytest.mark.faults
def test_loss_that_is_not_a_number_ends_in_one_line(train: Train, tmp_path: Path) -> None:
    done = train(tmp_path, "--training.learning_rate", "1e30", "--training.epochs", "12")
    assert done.out.count("the loss is not a number; rolled back") == 3
    assert done.status == EXIT_USER_ERROR
    [line] = [line for line in done.err.splitlines() if line.startswith("train:")]
    assert "the loss is not a number" in line
    assert "--training.learning_rate" in line
    assert "Traceback" not in done.err
    assert not (tmp_path / "bundle").exists()


def test_training_without_a_limit_is_refused(train: Train, tmp_path: Path) -> None:
    assert "set epochs, max_minutes or max_steps" in train(tmp_path, "--training.epochs", "null").error
    assert not list(tmp_path.iterdir())


def test_more_workers_than_fit_are_refused(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "")  # like an unset one
    done = train(tmp_path, "--scaling.num_workers", "10000")
    assert done.status == EXIT_USER_ERROR
    assert "--scaling.num_workers" in done.err
