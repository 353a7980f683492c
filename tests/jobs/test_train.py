"""``jobs.train`` as a user runs it: what it prints and writes, and its exit status where something is wrong."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.train import main
from pipeline.config.loader import load_config
from pipeline.config.train import TrainConfig
from pipeline.errors import exit_on_user_error

CONFIGS = Path(__file__).parents[2] / "configs"
Train = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def few_pairs(command_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pairs to train on, and one to validate on."""
    folder = tmp_path_factory.mktemp("few")
    for split, rows in (("train", 5), ("dev", 1)):
        pq.write_table(pq.read_table(command_pairs / split).slice(0, rows), folder / f"{split}.parquet")
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command_pairs: Path, few_pairs: Path) -> Train:
    """Runs the job on five pairs, for four epochs unless options say otherwise: its exit status, stdout and stderr."""

    def run(output: Path, *options: str) -> tuple[int, str, str]:
        given = {
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
        words = [word for option, value in given.items() for word in (f"--{option}", value)]
        monkeypatch.setattr(sys, "argv", ["train", *words, *options])
        with pytest.raises(SystemExit) as exit_:
            exit_on_user_error("train", main)
        printed = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, printed.out, printed.err

    return run


def test_a_short_training_shows_its_progress_and_ends_with_a_bundle(run: Train, tmp_path: Path) -> None:
    status, out, _ = run(tmp_path, "--scaling.num_workers", "2")
    assert status == 0
    lines = out.splitlines()
    assert "parameters in float32 on 2 × cpu" in out
    assert [line.split("loss")[0].split()[-2:] for line in lines if "tokens/s" in line] == [
        ["step", str(n)] for n in (1, 2, 3, 4)
    ]
    assert "min left" in out
    assert "dev loss" in out
    assert "exact match" in out
    assert f"trained: {tmp_path.as_uri()}/bundle" in lines
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == {
        "model.safetensors",
        "tokenizer.model",
        "config.json",
        "README.md",
    }
    records = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [record["kind"] for record in records] == ["start", *["step"] * 4, "validation"]
    assert records[-1]["pairs_seen"] == 4 * 5
    page = (tmp_path / "training.html").read_text()
    assert "Finished" in page
    assert records[-1]["samples"][0]["source"] in page
    [events] = (tmp_path / "tensorboard").iterdir()
    assert events.name.startswith("events.out.tfevents.")

    status, out, _ = run(tmp_path)
    assert status == 0
    assert "finished already" in out
    assert len((tmp_path / "train.jsonl").read_text().splitlines()) == len(records)


def test_a_loss_that_is_not_a_number_is_told_in_one_line(run: Train, tmp_path: Path) -> None:
    status, out, err = run(tmp_path, "--training.learning_rate", "1e30", "--training.epochs", "12")
    assert out.count("the loss is not a number; rolled back to the last checkpoint, or the start") == 3
    assert status == 2
    [line] = [line for line in err.splitlines() if line.startswith("train:")]
    assert re.match(
        r"train: the loss is not a number at step \d, after 3 rollbacks; .* --training.learning_rate \(now 1e\+30\)", line
    )
    assert "Traceback" not in err
    assert not (tmp_path / "bundle").exists()


def test_a_training_without_an_end_is_refused(run: Train, tmp_path: Path) -> None:
    status, _, err = run(tmp_path, "--training.epochs", "null")
    assert status == 2
    assert "set epochs, max_minutes or max_steps" in err
    assert not list(tmp_path.iterdir())


def test_more_workers_than_fit_are_refused(run: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "")  # as good as unset
    status, _, err = run(tmp_path, "--scaling.num_workers", "10000")
    assert status == 2
    assert "--scaling.num_workers" in err


@pytest.mark.parametrize("name", ["train", "train.arxiv", "train.arxiv.gpu", "train.scan", "train.tatoeba"])
def test_the_shipped_configurations_are_valid(name: str) -> None:
    config = load_config(TrainConfig, "train", ["--config", str(CONFIGS / f"{name}.yaml")])
    if name == "train":
        assert config == TrainConfig()
