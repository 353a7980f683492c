"""Files and folders by URI (plain paths, ``file``, ``s3``, ``gs``, ``hdfs``), through pyarrow's filesystems.

This module knows nothing of what files contain. Its errors are UserErrors that name the URI and the option that sets it.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from dataclasses import dataclass, replace
from datetime import datetime

import pyarrow as pa
from pyarrow import fs

from pipeline.errors import UserError, describe_error
from pipeline.io.retry import STORAGE
from pipeline.io.s3 import open_s3
from pipeline.io.secrets import refuse_secrets

PARQUET_SUFFIXES = [".parquet", ".pq"]
"""Suffixes of Parquet files. Ray Data's reader, which training uses, ignores all other files."""

PARTIAL_SUFFIX = ".part"
"""Suffix of a file while it is written; a rename then gives it its final name."""

_SUBMITTED_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Variable that is set in a process started by ``ray job submit``; Ray later deletes the working directory of such a job."""


@dataclass(frozen=True)
class StoredFile:
    """A file that ``Location.files`` found. ``size`` is in bytes, ``modified`` in UTC and None if it is unknown."""

    path: str
    size: int
    modified: datetime | None


@dataclass(frozen=True)
class Location:
    """A file or folder, which may not exist yet. Methods raise UserError unless they document OSError.

    Attributes:
        uri: the URI or path as the user wrote it, for messages.
        path: path in the filesystem.
        option: command-line option that sets the URI, for messages.
    """

    uri: str
    filesystem: fs.FileSystem
    path: str
    option: str

    @property
    def can_rename(self) -> bool:
        """True if files and folders are renamed atomically; an object store copies each file instead."""
        return self.filesystem.type_name in ("local", "hdfs")

    @property
    def has_folders(self) -> bool:
        """True if folders exist on their own; in an object store they are only prefixes of file names."""
        return self.filesystem.type_name not in ("s3", "gcs", "abfs")

    def child(self, name: str) -> Location:
        return self.with_suffix(f"/{name}")

    def with_suffix(self, suffix: str) -> Location:
        """Return the location whose name is this one's plus ``suffix``."""
        address, question_mark, query = self.uri.partition("?")
        uri = f"{address.rstrip('/')}{suffix}{question_mark}{query}"
        return replace(self, uri=uri, path=self.path.rstrip("/") + suffix)

    def contains(self, other: Location) -> bool:
        """Return whether ``other`` is this location or below it."""
        same_filesystem = bool(self.filesystem.equals(other.filesystem))
        return same_filesystem and f"{other.path.rstrip('/')}/".startswith(f"{self.path.rstrip('/')}/")

    def exists(self) -> bool:
        try:
            return bool(self.filesystem.get_file_info(self.path).type != fs.FileType.NotFound)
        except OSError as error:
            raise self._error("access", error) from None

    def read(self) -> bytes:
        try:
            with self.filesystem.open_input_file(self.path) as file:
                content: bytes = file.read()
                return content
        except (OSError, pa.ArrowInvalid) as error:
            raise self._error("read", error) from None

    def write(self, content: bytes | pa.Buffer) -> None:
        """Write a file atomically: readers see the whole file or the previous one. Creates missing folders."""
        try:
            self._put(content)
        except OSError as error:
            raise self._error("write", error) from None

    def write_with_retry(self, content: bytes | pa.Buffer) -> None:
        """Write a file like ``write``, and retry if the storage fails for a moment."""
        try:
            STORAGE.run(lambda: self._put(content))
        except OSError as error:
            raise self._error("write", error) from None

    def _put(self, content: bytes | pa.Buffer) -> None:
        # An object store shows a file only once it is complete. Elsewhere, a unique name lets two processes write it.
        temporary = f"{self.path}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}" if self.can_rename else self.path
        self.make_parent()
        try:
            with self.filesystem.open_output_stream(temporary) as file:
                file.write(content)
            if self.filesystem.type_name == "local":
                _fsync(temporary)
            if temporary != self.path:
                self.filesystem.move(temporary, self.path)
            if self.filesystem.type_name == "local":
                _fsync(self.path.rpartition("/")[0])
        except OSError:
            if temporary != self.path:
                with contextlib.suppress(OSError):
                    self.filesystem.delete_file(temporary)
            raise

    def make_folder(self) -> None:
        """Create this folder and its parents, unless the filesystem has no folders. Raises OSError."""
        if self.has_folders:
            self.filesystem.create_dir(self.path, recursive=True)

    def make_parent(self) -> None:
        """Create the folders above this location. Raises OSError."""
        replace(self, path=self.path.rpartition("/")[0]).make_folder()

    def names(self) -> list[str]:
        """Return the sorted names of the files and folders directly in a folder; none if it does not exist."""
        try:
            infos = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=True))
        except OSError as error:
            raise self._error("list", error) from None
        return sorted(info.base_name for info in infos)

    def files(self) -> list[StoredFile]:
        """Return the files below a folder, or the file itself, sorted by path, without hidden ones (``.x``, ``_x``).

        Raises:
            UserError: nothing exists at this location.
        """
        try:
            info = self.filesystem.get_file_info(self.path)
            if info.type == fs.FileType.NotFound:
                if not self.has_folders:
                    self.filesystem.get_file_info(fs.FileSelector(self.path))  # raises if the bucket is missing
                raise UserError(f"there is nothing at {self.uri}; set {self.option}")
            infos = [info] if info.type == fs.FileType.File else self._visible_files()
        except OSError as error:
            raise self._error("list", error) from None
        return sorted((StoredFile(file.path, file.size, file.mtime) for file in infos), key=lambda file: file.path)

    def parquet_files(self, *, recursive: bool) -> list[StoredFile]:
        """Return the files of ``files()`` that have a Parquet suffix; UserError if there are none."""
        files = [file for file in self.files() if file.path.endswith(tuple(PARQUET_SUFFIXES))]
        if not recursive:
            files = [file for file in files if "/" not in file.path[len(self.path) :].strip("/")]
        if not files:
            raise UserError(
                f"no Parquet file at {self.uri}; set {self.option} to a file whose name ends in .parquet or .pq, or to a "
                "folder with such files"
            )
        return files

    def _visible_files(self) -> list[fs.FileInfo]:
        def is_hidden(path: str) -> bool:
            return any(part.startswith((".", "_")) for part in path[len(self.path) :].split("/"))

        infos = self.filesystem.get_file_info(fs.FileSelector(self.path, recursive=True))
        return [info for info in infos if info.type == fs.FileType.File and not is_hidden(info.path)]

    def remove(self) -> None:
        """Delete a file if it exists."""
        try:
            self.filesystem.delete_file(self.path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._error("remove", error) from None

    def remove_folder(self) -> None:
        """Delete a folder and its content if it exists."""
        if not self.exists():
            return
        try:
            self.filesystem.delete_dir(self.path)
        except OSError as error:
            raise self._error("remove", error) from None

    def _error(self, verb: str, error: Exception) -> UserError:
        return UserError(f"cannot {verb} {self.uri}: {describe_error(error)}; set {self.option}")


def _fsync(path: str) -> None:
    """Flush a file, or the names in a folder, to disk, so that a recorded write survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def relative_to_cwd(path: str) -> str:
    """Return a path relative to the working directory if it is below it; URIs and other paths stay as they are."""
    return path.removeprefix(f"{os.getcwd()}/")


def open_location(uri: str, option: str) -> Location:
    """Open a URI or local path.

    Args:
        option: command-line option that sets the URI, for messages.

    Raises:
        UserError: the scheme is unknown, the URI holds a password, or a submitted job would write to its own working
            directory.
    """
    if "://" not in uri:
        path = os.path.expanduser(uri)
        if option.startswith("--output") and not os.path.isabs(path) and _SUBMITTED_JOB_VARIABLE in os.environ:
            raise UserError(
                f"{uri} is in the job's working directory, which Ray deletes when the job ends; set {option} to a URI or an "
                "absolute path that all nodes reach"
            )
        return Location(uri, fs.LocalFileSystem(), os.path.abspath(path), option)
    refuse_secrets(uri, option)
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
        if isinstance(filesystem, fs.S3FileSystem):
            filesystem = open_s3(*filesystem.__reduce__()[1])
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"cannot open {uri}: {describe_error(error)}; set {option}") from None
    return Location(uri, filesystem, path, option)
