"""A result folder that appears whole or not at all, and replaces an earlier one only once it is whole.

Knows folders and the names of what a job writes to one; nothing of what is in them.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import fs

from pipeline.errors import UserError, describe_error
from pipeline.io.location import PARTIAL_SUFFIX, Location, open_location

_SCRATCH = ".scratch"


@contextlib.contextmanager
def atomic_folder(output: Location, names: Sequence[str], overwrite: bool) -> Iterator[tuple[Location, Path]]:
    """A folder to write to that becomes ``output`` if the block ends well and is removed if it does not.

    It is written as ``<output>.partial``; one that a killed job left is removed first. A result that is there already is
    moved to ``<output>.replaced`` for the moment between the two renames. An object store knows no renaming of folders:
    there the files are moved one by one.

    Args:
        names: of what the job writes, the one that marks a whole result last. A folder that holds other things, or no
            whole result, is never replaced.

    Yields:
        The folder, and a local one for scratch files, which goes away.

    Raises:
        UserError: ``output`` is taken, or cannot be written.
    """
    output, partial, replaced = output.with_suffix(""), output.with_suffix(".partial"), output.with_suffix(".replaced")
    try:
        _require_free(output, names, overwrite)
        _require_own_files(partial, [*names, _SCRATCH])
        _require_own_files(replaced, names)
        partial.remove_folder()
        partial.make_folder()
        try:
            with _scratch_in(partial) as scratch:
                yield partial, scratch
            _require_free(output, names, overwrite)  # another job may have ended meanwhile
            if _list_names(output):
                replaced.remove_folder()
                _move(output, replaced, names[::-1])  # so that what is still there is not taken for a whole result
            _move(partial, output, names)
            replaced.remove_folder()
        finally:
            partial.remove_folder()
    except OSError as error:
        raise UserError(f"cannot write {output.uri}: {describe_error(error)}; make room or set another --output.path") from None


def _require_free(output: Location, names: Sequence[str], overwrite: bool) -> None:
    """UserError unless nothing is at ``output``, or a whole result that may be replaced."""
    if output.filesystem.get_file_info(output.path).type == fs.FileType.File:
        raise UserError(f"{output.uri} is a file; set another --output.path")
    found = _list_names(output)
    if not found:
        output.remove_folder()
    elif not overwrite:
        raise UserError(f"{output.uri} exists already; set --output.overwrite true or another --output.path")
    _require_own_files(output, names)
    if found and names[-1] not in found:
        raise UserError(
            f"{output.uri} holds no {names[-1]}, so it may be something else; remove it or set another --output.path"
        )


def _require_own_files(folder: Location, names: Sequence[str]) -> None:
    """UserError if a folder holds something else than what is called one of the names."""
    if strangers := [name for name in _list_names(folder) if name.removesuffix(PARTIAL_SUFFIX) not in names]:
        raise UserError(f"{folder.uri} holds {min(strangers)!r}, which this job does not write; set another --output.path")


def _list_names(folder: Location) -> set[str]:
    return {info.base_name for info in folder.filesystem.get_file_info(fs.FileSelector(folder.path, allow_not_found=True))}


def _move(source: Location, target: Location, names: Sequence[str]) -> None:
    store = source.filesystem
    if source.can_rename:
        store.move(source.path, target.path)
        return
    found = store.get_file_info(fs.FileSelector(source.path, recursive=True))
    files = [info.path.removeprefix(source.path + "/") for info in found if info.is_file]
    for file in sorted(files, key=lambda file: names.index(file.partition("/")[0])):
        target.child(file).make_parent()
        store.move(f"{source.path}/{file}", f"{target.path}/{file}")


@contextlib.contextmanager
def _scratch_in(folder: Location) -> Iterator[Path]:
    """In the folder itself where that is local, since the room is there; else where temporary files go."""
    if folder.filesystem.type_name != "local":
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
        return
    scratch = folder.child(_SCRATCH)
    yield Path(scratch.path)
    scratch.remove_folder()


@contextlib.contextmanager
def atomic_file(uri: str, option: str) -> Iterator[pa.NativeFile]:
    """A file to write that appears whole at the end or not at all. One that cannot be written is found out at once.

    Raises:
        UserError: it cannot; the error names the option, which sets the URI.
    """
    target = open_location(uri, option)
    part = target.path + PARTIAL_SUFFIX
    try:
        if target.filesystem.get_file_info(target.path).type == fs.FileType.Directory:
            raise UserError(f"cannot write {uri}: it is a folder; set {option} to a file")
        target.make_parent()
        if not target.has_folders:  # a file is opened there once there is something to send
            target.with_suffix(PARTIAL_SUFFIX).write(b"")
        file = target.filesystem.open_output_stream(part)
        try:
            with file:
                yield file
        except BaseException:
            target.filesystem.delete_file(part)
            raise
        target.filesystem.move(part, target.path)
    except OSError as error:
        raise UserError(f"cannot write {uri}: {describe_error(error)}; set {option}") from None
