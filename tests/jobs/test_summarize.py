"""``jobs.summarize`` as a user runs it: what it prints, and its exit status where something is wrong."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.summarize import main
from pipeline.errors import exit_on_user_error

Job = Callable[..., str]


@pytest.fixture
def store(tmp_path: Path) -> Path:
    path = tmp_path / "docs.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "text": ["one text", "another text"], "n": [1, 2]}), path)
    return path


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_bundle: Path) -> Job:
    """Runs the job with options that are wrong and gives the one line that it printed."""

    def run(*options: str) -> str:
        given = ["summarize", "--output.path", str(tmp_path / "out"), "--model.path", str(tiny_bundle), *options]
        monkeypatch.setattr(sys, "argv", given)
        with pytest.raises(SystemExit) as exit_:
            exit_on_user_error("summarize", main)
        assert exit_.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("summarize: ")
        assert error.count("\n") == 1
        return error

    return run


def test_no_such_path(fails: Job, tmp_path: Path) -> None:
    error = fails("--input.path", str(tmp_path / "missing"))
    assert str(tmp_path / "missing") in error
    assert "--input.path" in error


def test_empty_folder(fails: Job, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "holds no .parquet file" in fails("--input.path", str(tmp_path / "empty"))


def test_not_parquet(fails: Job, tmp_path: Path) -> None:
    bad = tmp_path / "bad.parquet"
    bad.write_text("id,text\n1,hello\n")
    assert f"{bad} is not a readable Parquet file" in fails("--input.path", str(bad))


def test_missing_column_names_those_that_exist(fails: Job, store: Path) -> None:
    error = fails("--input.path", str(store), "--input.text_column", "body")
    assert "'body'" in error
    assert "id, text, n" in error
    assert "--input.text_column" in error
    assert "--input.id_column" in fails("--input.path", str(store), "--input.id_column", "key")
    assert "--input.keep_columns" in fails("--input.path", str(store), "--input.keep_columns", "title")


def test_wrong_column_type(fails: Job, store: Path) -> None:
    error = fails("--input.path", str(store), "--input.text_column", "n")
    assert "'n'" in error
    assert "int64, not a string" in error


def test_files_that_disagree(fails: Job, tmp_path: Path) -> None:
    folder = tmp_path / "store"
    folder.mkdir()
    pq.write_table(pa.table({"id": ["a"], "text": ["t"]}), folder / "1.parquet")
    pq.write_table(pa.table({"id": [1], "text": ["t"]}), folder / "2.parquet")
    error = fails("--input.path", str(folder))
    assert "1.parquet" in error
    assert "2.parquet" in error


def test_broken_bundle(fails: Job, store: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    assert "no model bundle" in fails("--input.path", str(store), "--model.path", str(tmp_path / "none"))
    broken = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, broken)
    (broken / "tokenizer.model").write_bytes((broken / "tokenizer.model").read_bytes() + b"\n")
    assert "is not the one that" in fails("--input.path", str(store), "--model.path", str(broken))
    (broken / "model.safetensors").unlink()
    assert "model.safetensors" in fails("--input.path", str(store), "--model.path", str(broken))


def test_misspelt_option(fails: Job) -> None:
    assert "did you mean --input.text_column?" in fails("--input.text_colum", "body")


def test_run_id_that_is_no_folder_name(fails: Job, store: Path) -> None:
    assert "--output.run_id" in fails("--input.path", str(store), "--output.run_id", "../up")


def test_output_that_cannot_be_written(fails: Job, store: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = fails("--input.path", str(store), "--output.path", str(tmp_path / "file" / "out"))
    assert "cannot" in error
    assert "--output.path" in error


def test_the_job_from_the_shell(store: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    output = tmp_path / "out[/x]"  # no markup
    command = [sys.executable, "-m", "jobs.summarize", "--input.path", str(store), "--output.path", str(output)]
    command += ["--model.path", str(tiny_bundle), "--output.run_id", "night"]
    alone = {**os.environ, "RAY_ADDRESS": ""}
    first = subprocess.run(command, env=alone, capture_output=True, text=True, check=False)
    assert first.returncode == 0, first.stderr
    assert "summarized 2 of 2 documents" in first.stdout
    assert "another text" in first.stdout
    assert str(output / "summaries/run=night") in first.stdout
    again = subprocess.run(command, env=alone, capture_output=True, text=True, check=False)
    assert again.returncode == 0
    assert "finished already" in again.stdout


def test_a_dry_run_says_what_the_run_takes_and_writes_nothing(store: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    command = [sys.executable, "-m", "jobs.summarize", "--input.path", str(store), "--output.path", str(tmp_path / "out")]
    command += ["--model.path", str(tiny_bundle), "--dry-run"]
    done = subprocess.run(command, env={**os.environ, "RAY_ADDRESS": ""}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 documents in 1 files" in done.stdout
    for said in ("actors:    ", "source tokens, ", "some 2 documents, by a sample of 2", "it takes:  0:00:0", "actor hours"):
        assert said in done.stdout
    assert not (tmp_path / "out").exists()
