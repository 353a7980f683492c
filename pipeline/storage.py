"""Files by URI: plain local paths, ``file``, ``s3``, ``gs``, ``hdfs``, through pyarrow's filesystems.

Knows where bytes lie, not what they mean. What a user can mend comes out as a UserError that names the URI.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime

import pyarrow as pa
from pyarrow import fs

from pipeline.errors import UserError


@dataclass(frozen=True)
class StoredFile:
    """A file found by ``list_files``. path: as its filesystem spells it; size in bytes; modified in UTC, if known."""

    path: str
    size: int
    modified: datetime | None


@dataclass(frozen=True)
class Place:
    """A URI opened: its filesystem, and the path within it."""

    uri: str
    filesystem: fs.FileSystem
    path: str

    def child(self, name: str) -> Place:
        """The place of ``name`` under this one."""
        address, question, query = self.uri.partition("?")
        return Place(f"{address.rstrip('/')}/{name}{question}{query}", self.filesystem, f"{self.path.rstrip('/')}/{name}")

    def contains(self, other: Place) -> bool:
        """Whether the other place is this one or below it."""
        same_store = self.filesystem.equals(other.filesystem)
        return bool(same_store) and f"{other.path.rstrip('/')}/".startswith(f"{self.path.rstrip('/')}/")

    def exists(self) -> bool:
        """Whether a file or folder is there."""
        try:
            return bool(self.filesystem.get_file_info(self.path).type != fs.FileType.NotFound)
        except OSError as error:
            raise UserError(f"cannot look at {self.uri}: {_reason(error)}") from None

    def read(self) -> bytes:
        """A file's bytes. Raises UserError if it cannot be read."""
        try:
            with self.filesystem.open_input_file(self.path) as file:
                content: bytes = file.read()
                return content
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"cannot read {self.uri}: {_reason(error)}") from None

    def write(self, content: bytes) -> None:
        """Write a file, and the folders above it. Raises UserError if that cannot be done."""
        try:
            self.filesystem.create_dir(self.path.rpartition("/")[0], recursive=True)
            with self.filesystem.open_output_stream(self.path) as file:
                file.write(content)
        except OSError as error:
            raise UserError(f"cannot write {self.uri}: {_reason(error)}") from None

    def files(self) -> list[StoredFile]:
        """The files below a folder, or the file itself, sorted by path. Hidden ones (``.x``, ``_x``) are left out.

        Raises UserError where nothing is there.
        """
        try:
            info = self.filesystem.get_file_info(self.path)
            if info.type == fs.FileType.NotFound:
                raise UserError(f"there is nothing at {self.uri}")
            found = [info] if info.type == fs.FileType.File else self._below()
        except OSError as error:
            raise UserError(f"cannot list {self.uri}: {_reason(error)}") from None
        return sorted((StoredFile(file.path, file.size, file.mtime) for file in found), key=lambda file: file.path)

    def _below(self) -> list[fs.FileInfo]:
        def hidden(path: str) -> bool:
            return any(part.startswith((".", "_")) for part in path[len(self.path) :].split("/"))

        below = self.filesystem.get_file_info(fs.FileSelector(self.path, recursive=True))
        return [info for info in below if info.type == fs.FileType.File and not hidden(info.path)]

    def remove_folder(self) -> None:
        """Delete a folder with all in it; nothing happens if it is not there. Raises UserError if it stays."""
        if not self.exists():
            return
        try:
            self.filesystem.delete_dir(self.path)
        except OSError as error:
            raise UserError(f"cannot remove {self.uri}: {_reason(error)}") from None


def place(uri: str) -> Place:
    """Open a URI or a local path. Raises UserError for a scheme that no filesystem is known for."""
    if "://" not in uri:
        return Place(uri, fs.LocalFileSystem(), os.path.abspath(os.path.expanduser(uri)))
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"cannot open {uri}: {_reason(error)}") from None
    return Place(uri, filesystem, path)


def _reason(error: Exception) -> str:
    """An error's own words on one line; for the system's errors just what went wrong."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return " ".join(str(error).split())
