"""An output folder appears complete or not at all, and replaces an earlier one only when it is complete."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs

from pipeline.errors import UserError
from pipeline.io.atomic import atomic_folder
from pipeline.io.location import Location, open_location

NAMES = ("data", "done.json")
COMPLETE = {"data/part": "new", "done.json": "{}"}


def write(output: Location, content: str, overwrite: bool = False) -> None:
    with atomic_folder(output, NAMES, overwrite=overwrite) as (folder, scratch):
        scratch.mkdir(parents=True, exist_ok=True)
        (scratch / "heap").write_text("x")
        folder.child("data").child("part").write(content.encode())
        folder.child("done.json").write(b"{}")


def contents(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(params=["renamed", "file by file"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """``out`` on a filesystem that renames folders, and on one that must move the files one by one."""
    if request.param == "renamed":
        return open_location(str(tmp_path / "out"), "--output.path")
    return Location("base://out", fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "out", "--output.path")


def test_new_folder_appears_without_leftovers(tmp_path: Path, output: Location) -> None:
    write(output, "new")
    assert contents(tmp_path) == {f"out/{name}": text for name, text in COMPLETE.items()}


def test_output_does_not_exist_until_the_block_ends(tmp_path: Path, output: Location) -> None:
    with atomic_folder(output, NAMES, overwrite=False) as (folder, _):
        folder.child("done.json").write(b"{}")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out").exists()


def test_failure_keeps_the_earlier_result(tmp_path: Path, output: Location) -> None:
    write(output, "new")
    block = atomic_folder(output, NAMES, overwrite=True)
    folder, _ = block.__enter__()
    folder.child("data").child("part").write(b"newer")
    failure = RuntimeError("in the block")
    assert not block.__exit__(RuntimeError, failure, None)
    assert contents(tmp_path) == {f"out/{name}": text for name, text in COMPLETE.items()}


def test_earlier_result_is_replaced_only_with_overwrite(tmp_path: Path, output: Location) -> None:
    write(output, "old")
    with pytest.raises(UserError, match=r"--output\.overwrite"):
        write(output, "new")
    assert contents(tmp_path / "out")["data/part"] == "old"
    write(output, "new", overwrite=True)
    assert contents(tmp_path) == {f"out/{name}": text for name, text in COMPLETE.items()}


def test_leftovers_of_a_killed_job_are_removed(tmp_path: Path, output: Location) -> None:
    for name in ("out.partial/data/part", "out.partial/.scratch/heap"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("half")
    write(output, "new")
    assert contents(tmp_path) == {f"out/{name}": text for name, text in COMPLETE.items()}


@pytest.mark.parametrize("name", ["out/notes.txt", "out.partial/notes.txt", "out.replaced/notes.txt"])
def test_folder_with_foreign_files_is_never_touched(tmp_path: Path, output: Location, name: str) -> None:
    write(output, "old")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt.*--output\.path"):
        write(output, "new", overwrite=True)
    assert (tmp_path / name).read_text() == "mine"
    assert contents(tmp_path / "out")["data/part"] == "old"


def test_folder_without_the_marker_is_never_touched(tmp_path: Path, output: Location) -> None:
    (tmp_path / "out/data").mkdir(parents=True)
    (tmp_path / "out/data/raw.txt").write_text("mine")
    with pytest.raises(UserError, match=r"done\.json"):
        write(output, "new", overwrite=True)
    assert contents(tmp_path) == {"out/data/raw.txt": "mine"}


def test_empty_folder_is_replaced(tmp_path: Path, output: Location) -> None:
    (tmp_path / "out").mkdir()
    write(output, "new")
    assert contents(tmp_path / "out") == COMPLETE


class FailingFileSystem(LocalFileSystem):
    """Fails after a number of moves."""

    moves_left = 100

    def mv(self, *paths: str, **options: Any) -> None:
        if not self.moves_left:
            raise OSError("the storage failed")
        self.moves_left -= 1
        super().mv(*paths, **options)


def test_half_moved_result_does_not_look_complete(tmp_path: Path) -> None:
    storage = FailingFileSystem(skip_instance_cache=True)
    output = Location("fsspec://out", fs.PyFileSystem(fs.FSSpecHandler(storage)), str(tmp_path / "out"), "--output.path")
    write(output, "old")
    storage.moves_left = 1
    with pytest.raises(UserError, match="the storage failed"):
        write(output, "new", overwrite=True)
    assert contents(tmp_path / "out") == {"data/part": "old"}


def test_output_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"is a file.*--output\.path"):
        write(open_location(str(tmp_path / "file"), "--output.path"), "new")
    with pytest.raises(UserError, match=r"/file/out: Not a directory.*--output\.path"):
        write(open_location(str(tmp_path / "file" / "out"), "--output.path"), "new")
