"""A result folder appears whole or not at all, and takes the place of an earlier one only when it is whole."""

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


def write(output: Location, content: str, overwrite: bool = False) -> None:
    with atomic_folder(output, NAMES, overwrite) as (folder, scratch):
        scratch.mkdir(parents=True, exist_ok=True)
        (scratch / "heap").write_text("x")
        folder.child("data").child("part").write(content.encode())
        folder.child("done.json").write(b"{}")


def stands(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()}


WHOLE = {"data/part": "new", "done.json": "{}"}


@pytest.fixture(params=["renamed", "file by file"])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    """``out``, on a filesystem that renames folders, and seen as one that does not."""
    if request.param == "renamed":
        return open_location(str(tmp_path / "out"), "--output.path")
    return Location("base://out", fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), "out", "--output.path")


def test_a_new_folder_appears_with_nothing_beside_it(tmp_path: Path, output: Location) -> None:
    write(output, "new")
    assert stands(tmp_path) == {f"out/{name}": text for name, text in WHOLE.items()}


def test_nothing_is_there_until_the_end(tmp_path: Path, output: Location) -> None:
    with atomic_folder(output, NAMES, overwrite=False) as (folder, _):
        folder.child("done.json").write(b"{}")
        assert not (tmp_path / "out").exists()
    assert (tmp_path / "out").exists()


def test_a_failure_leaves_nothing_new_and_the_old_as_it_was(tmp_path: Path, output: Location) -> None:
    write(output, "new")
    block = atomic_folder(output, NAMES, overwrite=True)
    folder, _ = block.__enter__()
    folder.child("data").child("part").write(b"newer")
    failure = RuntimeError("in the block")
    assert not block.__exit__(RuntimeError, failure, None)
    assert stands(tmp_path) == {f"out/{name}": text for name, text in WHOLE.items()}


def test_an_earlier_result_is_replaced_where_that_is_allowed_alone(tmp_path: Path, output: Location) -> None:
    write(output, "old")
    with pytest.raises(UserError, match=r"exists already; set --output\.overwrite true or another --output\.path"):
        write(output, "new")
    assert stands(tmp_path / "out")["data/part"] == "old"
    write(output, "new", overwrite=True)
    assert stands(tmp_path) == {f"out/{name}": text for name, text in WHOLE.items()}


def test_what_a_killed_job_left_is_cleared_away(tmp_path: Path, output: Location) -> None:
    for left in ("out.partial/data/part", "out.partial/.scratch/heap"):
        (tmp_path / left).parent.mkdir(parents=True)
        (tmp_path / left).write_text("half")
    write(output, "new")
    assert stands(tmp_path) == {f"out/{name}": text for name, text in WHOLE.items()}


@pytest.mark.parametrize("name", ["out/notes.txt", "out.partial/notes.txt", "out.replaced/notes.txt"])
def test_a_folder_with_other_things_in_it_is_never_touched(tmp_path: Path, output: Location, name: str) -> None:
    write(output, "old")
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UserError, match=r"holds 'notes\.txt', which this job does not write; set another --output\.path"):
        write(output, "new", overwrite=True)
    assert (tmp_path / name).read_text() == "mine"
    assert stands(tmp_path / "out")["data/part"] == "old"


def test_a_folder_that_only_looks_like_a_result_is_never_touched(tmp_path: Path, output: Location) -> None:
    (tmp_path / "out/data").mkdir(parents=True)
    (tmp_path / "out/data/raw.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds no done\.json"):
        write(output, "new", overwrite=True)
    assert stands(tmp_path) == {"out/data/raw.txt": "mine"}


def test_an_empty_folder_is_free(tmp_path: Path, output: Location) -> None:
    (tmp_path / "out").mkdir()
    write(output, "new")
    assert stands(tmp_path / "out") == WHOLE


class Breaking(LocalFileSystem):
    """Moves so many files, and no more."""

    moves = 100

    def mv(self, *paths: str, **options: Any) -> None:
        if not self.moves:
            raise OSError("the store is gone")
        self.moves -= 1
        super().mv(*paths, **options)


def test_what_is_half_moved_away_is_not_taken_for_a_whole_result(tmp_path: Path) -> None:
    store = Breaking(skip_instance_cache=True)
    output = Location("store://out", fs.PyFileSystem(fs.FSSpecHandler(store)), str(tmp_path / "out"), "--output.path")
    write(output, "old")
    store.moves = 1
    with pytest.raises(UserError, match="the store is gone"):
        write(output, "new", overwrite=True)
    assert stands(tmp_path / "out") == {"data/part": "old"}


def test_a_place_that_cannot_be_written_is_a_user_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"is a file; set another --output\.path"):
        write(open_location(str(tmp_path / "file"), "--output.path"), "new")
    with pytest.raises(UserError, match=r"cannot write .*/file/out: Not a directory"):
        write(open_location(str(tmp_path / "file" / "out"), "--output.path"), "new")
