"""``jobs.summarize`` as a user runs it: its output, and its messages for invalid options and inputs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job import RunJob, job_runner, run_command

from pipeline.errors import EXIT_OK

GetError = Callable[..., str]


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    path = tmp_path / "docs.parquet"
    pq.write_table(pa.table({"id": ["a", "b"], "text": ["one text", "another text"], "n": [1, 2]}), path)
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunJob:
    return job_runner("summarize", monkeypatch, capsys)


@pytest.fixture
def error(run: RunJob, tmp_path: Path, tiny_bundle: Path, documents: Path) -> GetError:
    """A function that runs the job with invalid options and returns its error message."""
    defaults = ["--input.path", documents, "--output.path", tmp_path / "out", "--model.path", tiny_bundle]
    return lambda *options: run(*defaults, *options).error


def test_missing_input(error: GetError, tmp_path: Path) -> None:
    message = error("--input.path", tmp_path / "missing")
    assert str(tmp_path / "missing") in message
    assert "--input.path" in message


def test_empty_folder(error: GetError, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    message = error("--input.path", tmp_path / "empty")
    assert f"{tmp_path}/empty" in message
    assert ".parquet" in message


def test_file_that_is_not_parquet(error: GetError, tmp_path: Path) -> None:
    file = tmp_path / "bad.parquet"
    file.write_text("id,text\n1,hello\n")
    message = error("--input.path", file)
    assert str(file) in message
    assert "--input.on_bad_file skip" in message


def test_input_without_a_readable_file(error: GetError, tmp_path: Path) -> None:
    file = tmp_path / "bad.parquet"
    file.write_text("id,text\n1,hello\n")
    message = error("--input.path", file, "--input.on_bad_file", "skip")
    assert f"no file of {file} can be read; repair them, or set --input.path" in message
    assert "--input.on_bad_file" not in message, "the option is set already"


def test_missing_column_lists_the_existing_ones(error: GetError) -> None:
    message = error("--input.text_column", "body")
    assert "'body'" in message
    assert "id, text, n" in message
    assert "--input.text_column" in message
    assert "--input.id_column" in error("--input.id_column", "key")
    assert "--input.keep_columns" in error("--input.keep_columns", "title")


def test_wrong_column_type(error: GetError) -> None:
    message = error("--input.text_column", "n")
    assert "'n'" in message
    assert "int64" in message


def test_files_with_different_schemas(error: GetError, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(pa.table({"id": ["a"], "text": ["t"]}), folder / "1.parquet")
    pq.write_table(pa.table({"id": [1], "text": ["t"]}), folder / "2.parquet")
    message = error("--input.path", folder)
    assert "1.parquet" in message
    assert "2.parquet" in message


def test_broken_bundle(error: GetError, tmp_path: Path, tiny_bundle: Path) -> None:
    assert "no model bundle" in error("--model.path", tmp_path / "none")
    broken = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    (broken / "tokenizer.model").write_bytes((broken / "tokenizer.model").read_bytes() + b"\n")
    assert "tokenizer.model" in error("--model.path", broken)
    (broken / "model.safetensors").unlink()
    assert "model.safetensors" in error("--model.path", broken)


def test_misspelt_option(error: GetError) -> None:
    assert "did you mean --input.text_column?" in error("--input.text_colum", "body")


def test_run_id_that_is_not_a_folder_name(error: GetError) -> None:
    assert "--output.run_id" in error("--output.run_id", "../up")


def test_output_that_cannot_be_written(error: GetError, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "--output.path" in error("--output.path", tmp_path / "file" / "out")


def test_run_from_the_shell(run: RunJob, documents: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    output = tmp_path / "out[/x]"  # must not be taken for console markup
    options = ["--input.path", documents, "--output.path", output, "--model.path", tiny_bundle, "--output.run_id", "night"]
    first = run_command("summarize", *options)
    assert first.status == EXIT_OK, first.err
    assert first.err == ""
    assert "starting Ray" in first.out
    assert "summarized 2 of 2 documents" in first.out
    assert "another text" in first.out
    assert str(output / "summaries/run=night") in first.out
    second = run(*options)
    assert second.status == EXIT_OK
    assert "already finished" in second.out


def test_dry_run_prints_an_estimate_and_writes_nothing(run: RunJob, documents: Path, tmp_path: Path, tiny_bundle: Path) -> None:
    options = ["--input.path", documents, "--output.path", tmp_path / "out", "--model.path", tiny_bundle, "--dry-run"]
    done = run(*options)
    assert done.status == EXIT_OK, done.err
    assert "2 documents in 1 files" in done.out
    for part in ("actors:    ", "about 2 ", "sample of 2", "source tokens, ", "0:00:0", "actor hours"):
        assert part in done.out
    assert not (tmp_path / "out").exists()
