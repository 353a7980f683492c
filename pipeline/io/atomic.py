"""Output folders and files that appear complete or not at all, and replace earlier ones only when complete."""

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
def atomic_folder(output: Location, names: Sequence[str], *, overwrite: bool) -> Iterator[tuple[Location, Path]]:
    """Yield a folder that becomes ``output`` when the block succeeds and is removed when it fails.

    The folder is written as ``<output>.partial``. An earlier result is renamed to ``<output>.replaced`` and removed once the
    new one is in its place. Leftovers of a killed job are removed first. An object store cannot rename a folder, so its files
    are moved one by one.

    Args:
        names: names that the job writes to the folder; the last one marks a complete result. A folder with other names or
            without the last one is never replaced.
        overwrite: replace an earlier result.

    Yields:
        The folder to write to, and a local folder for scratch files, which is removed at the end.

    Raises:
        UserError: ``output`` exists and may not be replaced, or cannot be written.
    """
    output, partial, replaced = output.with_suffix(""), output.with_suffix(".partial"), output.with_suffix(".replaced")
    try:
        _require_replaceable(output, names, overwrite)
        _require_known_names(partial, [*names, _SCRATCH])
        _require_known_names(replaced, names)
        partial.remove_folder()
        partial.make_folder()
        try:
            with _scratch_folder(partial) as scratch:
                yield partial, scratch
            _require_replaceable(output, names, overwrite)  # another job may have finished in the meantime
            if output.names():
                replaced.remove_folder()
                _move(output, replaced, names[::-1])  # the marker first, so that the rest is not taken for a complete result
            _move(partial, output, names)
            replaced.remove_folder()
        finally:
            partial.remove_folder()
    except OSError as error:
        raise UserError(
            f"cannot write {output.uri}: {describe_error(error)}; free some space or set another --output.path"
        ) from None


def _require_replaceable(output: Location, names: Sequence[str], overwrite: bool) -> None:
    """Raise UserError unless ``output`` is missing, is empty, or holds a complete result that may be replaced."""
    if output.filesystem.get_file_info(output.path).type == fs.FileType.File:
        raise UserError(f"{output.uri} is a file; set another --output.path")
    existing = output.names()
    if not existing:
        output.remove_folder()
    elif not overwrite:
        raise UserError(f"{output.uri} already exists; set --output.overwrite true or another --output.path")
    _require_known_names(output, names)
    if existing and names[-1] not in existing:
        raise UserError(
            f"{output.uri} has no {names[-1]}, so this job may not have written it; remove it or set another --output.path"
        )


def _require_known_names(folder: Location, names: Sequence[str]) -> None:
    """Raise UserError if a folder holds a name that the job does not write."""
    if unknown := [name for name in folder.names() if name.removesuffix(PARTIAL_SUFFIX) not in names]:
        raise UserError(f"{folder.uri} holds {unknown[0]!r}, which this job does not write; set another --output.path")


def _move(source: Location, target: Location, names: Sequence[str]) -> None:
    """Rename a folder, or move its files one by one in the order of ``names``."""
    filesystem = source.filesystem
    if source.can_rename:
        filesystem.move(source.path, target.path)
        return
    infos = filesystem.get_file_info(fs.FileSelector(source.path, recursive=True))
    files = [info.path.removeprefix(source.path + "/") for info in infos if info.is_file]
    for file in sorted(files, key=lambda file: names.index(file.partition("/")[0])):
        target.child(file).make_parent()
        filesystem.move(f"{source.path}/{file}", f"{target.path}/{file}")


@contextlib.contextmanager
def _scratch_folder(folder: Location) -> Iterator[Path]:
    """Yield a local scratch folder: in ``folder`` if it is local, since its disk has the space, else a temporary folder."""
    if folder.filesystem.type_name != "local":
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
        return
    scratch = folder.child(_SCRATCH)
    yield Path(scratch.path)
    scratch.remove_folder()


@contextlib.contextmanager
def atomic_file(uri: str, option: str) -> Iterator[pa.NativeFile]:
    """Open a file for writing that appears complete when the block succeeds, or not at all.

    Raises:
        UserError: the file cannot be written, which is checked at the start as far as possible; names the option.
    """
    target = open_location(uri, option)
    temporary = target.path + PARTIAL_SUFFIX
    try:
        if target.filesystem.get_file_info(target.path).type == fs.FileType.Directory:
            raise UserError(f"cannot write {uri}: it is a folder; set {option} to a file")
        target.make_parent()
        if not target.has_folders:  # an object store would report an error only once there is data to send
            target.with_suffix(PARTIAL_SUFFIX).write(b"")
        file = target.filesystem.open_output_stream(temporary)
        try:
            with file:
                yield file
        except BaseException:
            target.filesystem.delete_file(temporary)
            raise
        target.filesystem.move(temporary, target.path)
    except OSError as error:
        raise UserError(f"cannot write {uri}: {describe_error(error)}; set {option}") from None
