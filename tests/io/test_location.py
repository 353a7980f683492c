"""Locations: their error messages, their atomic writes, and the files they find."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs

from pipeline.errors import UserError
from pipeline.io import retry
from pipeline.io.location import Location, open_location


def test_errors_name_the_problem_the_path_and_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    under_file, too_long = f"{tmp_path}/file/a", f"{tmp_path}/{'x' * 300}"
    for action, message in {
        lambda: open_location("s4://a", "--x"): "cannot open s4://a: ",
        lambda: open_location(f"{tmp_path}/none", "--x").read(): f"cannot read {tmp_path}/none: No such file or directory",
        lambda: open_location(f"{tmp_path}/none", "--x").files(): f"{tmp_path}/none",
        lambda: open_location(too_long, "--x").exists(): f"{too_long}: File name too long",
        lambda: open_location(under_file, "--x").write(b""): f"cannot write {under_file}: ",
        lambda: open_location(f"{tmp_path}/file", "--x").names(): f"cannot list {tmp_path}/file: ",
        lambda: open_location(f"{tmp_path}/file", "--x").remove_folder(): f"cannot remove {tmp_path}/file: ",
        lambda: open_location(f"{tmp_path}/folder", "--x").parquet_files(recursive=True): f"{tmp_path}/folder",
    }.items():
        with pytest.raises(UserError) as caught:
            action()
        assert message in str(caught.value)
        assert "; set --x" in str(caught.value)


def test_names_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder/b").mkdir(parents=True)
    (tmp_path / "folder/a").write_text("")
    assert open_location(f"{tmp_path}/folder", "--x").names() == ["a", "b"]
    assert open_location(f"{tmp_path}/none", "--x").names() == []


def test_write_replaces_a_file_completely_or_not_at_all(tmp_path: Path) -> None:
    file = open_location(str(tmp_path / "new/folder/a"), "--x")
    file.write(b"old")
    file.write(b"new")
    assert file.read() == b"new"
    assert [path.name for path in (tmp_path / "new/folder").iterdir()] == ["a"]
    folder = open_location(str(tmp_path / "new"), "--x")
    with pytest.raises(UserError, match="Is a directory"):
        folder.write(b"newer")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_write_with_retry_survives_a_short_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("a file where a folder should be")
    file = open_location(str(tmp_path / "a/b"), "--x")
    pauses_s: list[float] = []

    def repair_in_second_pause(seconds: float) -> None:
        pauses_s.append(seconds)
        if len(pauses_s) == 2:
            (tmp_path / "a").unlink()

    monkeypatch.setattr(retry.time, "sleep", repair_in_second_pause)
    file.write_with_retry(b"in the end")
    assert file.read() == b"in the end"
    assert len(pauses_s) == 2
    with pytest.raises(UserError, match=r"a/b/c: .*--x"):
        open_location(str(tmp_path / "a/b/c"), "--x").write_with_retry(b"")
    assert len(pauses_s) == 2 + retry.STORAGE.attempts - 1


def test_child_and_suffix_keep_the_query_of_the_uri() -> None:
    output = Location("s3://bucket/out/?region=x&scheme=http", fs.LocalFileSystem(), "bucket/out", "--output.path")
    assert output.child("train").uri == "s3://bucket/out/train?region=x&scheme=http"
    assert output.child("train").path == "bucket/out/train"
    assert output.with_suffix(".partial").uri == "s3://bucket/out.partial?region=x&scheme=http"
    assert output.with_suffix(".partial").path == "bucket/out.partial"


def test_parquet_files_are_found_by_suffix(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.pq", "c.txt", "below/d.parquet", "_hidden/e.parquet", ".f.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")

    def find(path: Path, recursive: bool) -> list[str]:
        files = open_location(str(path), "--x").parquet_files(recursive=recursive)
        return [file.path.removeprefix(f"{tmp_path}/") for file in files]

    assert find(tmp_path, recursive=False) == ["a.parquet", "b.pq"]
    assert find(tmp_path, recursive=True) == ["a.parquet", "b.pq", "below/d.parquet"]
    assert find(tmp_path / "b.pq", recursive=False) == ["b.pq"]
    with pytest.raises(UserError, match=r"c\.txt; set --x"):
        find(tmp_path / "c.txt", recursive=True)


def test_submitted_job_must_not_write_to_its_working_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UserError, match=r"out .*--output\.path"):
        open_location("out", "--output.path")
    assert open_location("configs/train.yaml", "--config").path.endswith("/configs/train.yaml")
    assert open_location(str(tmp_path), "--output.path").path == str(tmp_path)
