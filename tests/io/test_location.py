"""Places: what their errors say, what a write leaves behind, and which files they find."""

from __future__ import annotations

from pathlib import Path

import pytest
from pyarrow import fs

from pipeline.errors import UserError
from pipeline.io import retry
from pipeline.io.location import Location, open_location


def test_each_error_names_what_went_wrong_where_and_the_option_that_sets_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    under_file, too_long = f"{tmp_path}/file/a", f"{tmp_path}/{'x' * 300}"
    for what, error in {
        lambda: open_location("s4://a", "--x"): "cannot open s4://a: ",
        lambda: open_location(f"{tmp_path}/none", "--x").read(): f"cannot read {tmp_path}/none: No such file or directory",
        lambda: open_location(f"{tmp_path}/none", "--x").files(): f"there is nothing at {tmp_path}/none",
        lambda: open_location(too_long, "--x").exists(): f"cannot look at {too_long}: File name too long",
        lambda: open_location(under_file, "--x").write(b""): f"cannot write {under_file}: ",
        lambda: open_location(f"{tmp_path}/file", "--x").remove_folder(): f"cannot remove {tmp_path}/file: ",
        lambda: open_location(f"{tmp_path}/folder", "--x").parquet_files(
            True
        ): f"{tmp_path}/folder is or holds no .parquet file",
    }.items():
        with pytest.raises(UserError) as caught:
            what()
        assert str(caught.value).startswith(error)
        assert "; set --x" in str(caught.value)


def test_a_write_replaces_a_file_whole_or_not_at_all(tmp_path: Path) -> None:
    file = open_location(str(tmp_path / "new/folder/a"), "--x")
    file.write(b"old")
    file.write(b"new")
    assert [path.name for path in (tmp_path / "new/folder").iterdir()] == ["a"]
    file = open_location(str(tmp_path / "new"), "--x")  # a folder, in whose place no file can be put
    with pytest.raises(UserError, match="Is a directory"):
        file.write(b"newer")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_a_storage_that_fails_for_a_moment_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("a file where a folder should be")
    file = open_location(str(tmp_path / "a/b"), "--x")
    slept: list[float] = []

    def mend(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            (tmp_path / "a").unlink()

    monkeypatch.setattr(retry.time, "sleep", mend)
    file.write_with_retry(b"in the end")
    assert file.read() == b"in the end"
    assert len(slept) == 2
    with pytest.raises(UserError, match=r"cannot write .*a/b/c: .*; set --x"):
        open_location(str(tmp_path / "a/b/c"), "--x").write_with_retry(b"")
    assert len(slept) == 5


def test_a_place_below_or_beside_another_keeps_the_options_in_its_uri() -> None:
    output = Location("s3://bucket/out/?region=x&scheme=http", fs.LocalFileSystem(), "bucket/out", "--output.path")
    assert output.child("train").uri == "s3://bucket/out/train?region=x&scheme=http"
    assert output.child("train").path == "bucket/out/train"
    assert output.beside(".partial").uri == "s3://bucket/out.partial?region=x&scheme=http"
    assert output.beside(".partial").path == "bucket/out.partial"


def test_parquet_files_are_found_by_their_endings(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.pq", "c.txt", "below/d.parquet", "_hidden/e.parquet", ".f.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")

    def found(path: Path, recursive: bool) -> list[str]:
        return [file.path.removeprefix(f"{tmp_path}/") for file in open_location(str(path), "--x").parquet_files(recursive)]

    assert found(tmp_path, recursive=False) == ["a.parquet", "b.pq"]
    assert found(tmp_path, recursive=True) == ["a.parquet", "b.pq", "below/d.parquet"]
    assert found(tmp_path / "b.pq", recursive=False) == ["b.pq"]
    with pytest.raises(UserError, match=r"c\.txt is or holds no \.parquet file; set --x"):
        found(tmp_path / "c.txt", recursive=True)


def test_a_submitted_job_writes_nothing_that_goes_with_its_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UserError, match=r"out would go when the job ends; set --output\.path to a URI, or a whole path"):
        open_location("out", "--output.path")
    assert open_location("configs/train.yaml", "--config").path.endswith("/configs/train.yaml")
    assert open_location(str(tmp_path), "--output.path").path == str(tmp_path)
