"""Files by URI: plain local paths, ``file``, ``s3``, ``gs``, ``hdfs``, through pyarrow's filesystems.

Knows where bytes lie, not what they mean. What a user can mend comes out as a UserError that names the URI and the
option that sets it.
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
"""Of the names of Parquet files. Training's reader, Ray Data's own, takes no file of another name."""


PARTIAL_SUFFIX = ".part"
"""Ends the name of a file that is being written, where a rename then puts it in its place."""


_SUBMITTED_JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it where a process was started by ``ray job submit``, in a folder that Ray removes afterwards."""


@dataclass(frozen=True)
class StoredFile:
    """A file found by ``Location.files``. path: as its filesystem spells it; size in bytes; modified in UTC, if known."""

    path: str
    size: int
    modified: datetime | None


@dataclass(frozen=True)
class Location:
    """A URI opened: its filesystem, the path within it, and the option that sets it, which errors name."""

    uri: str
    filesystem: fs.FileSystem
    path: str
    option: str

    @property
    def can_rename(self) -> bool:
        """Whether files and folders are renamed at once, and not, as in an object store, by copying each file."""
        return self.filesystem.type_name in ("local", "hdfs")

    @property
    def has_folders(self) -> bool:
        """Whether a folder is a thing of its own, and not just what names of files begin with, which goes with the last."""
        return self.filesystem.type_name not in ("s3", "gcs", "abfs")

    def child(self, name: str) -> Location:
        """The place of ``name`` under this one."""
        return self.with_suffix(f"/{name}")

    def with_suffix(self, ending: str) -> Location:
        """The place whose name is this one's with ``ending`` after it."""
        address, question, query = self.uri.partition("?")
        return replace(self, uri=f"{address.rstrip('/')}{ending}{question}{query}", path=self.path.rstrip("/") + ending)

    def contains(self, other: Location) -> bool:
        """Whether the other place is this one or below it."""
        same_store = self.filesystem.equals(other.filesystem)
        return bool(same_store) and f"{other.path.rstrip('/')}/".startswith(f"{self.path.rstrip('/')}/")

    def exists(self) -> bool:
        """Whether a file or folder is there."""
        try:
            return bool(self.filesystem.get_file_info(self.path).type != fs.FileType.NotFound)
        except OSError as error:
            raise self._error("look at", error) from None

    def read(self) -> bytes:
        """A file's bytes. Raises UserError if it cannot be read."""
        try:
            with self.filesystem.open_input_file(self.path) as file:
                content: bytes = file.read()
                return content
        except (OSError, pa.ArrowInvalid) as error:
            raise self._error("read", error) from None

    def write(self, content: bytes | pa.Buffer) -> None:
        """Write a file, which appears whole or stays as it was, and the folders above it. Raises UserError if it cannot."""
        try:
            self._put(content)
        except OSError as error:
            raise self._error("write", error) from None

    def write_with_retry(self, content: bytes | pa.Buffer) -> None:
        """As ``write``, but a storage that fails for a moment does not end a night's run."""
        try:
            STORAGE.run(lambda: self._put(content))
        except OSError as error:
            raise self._error("write", error) from None

    def _put(self, content: bytes | pa.Buffer) -> None:
        # An object store shows a file once it is closed. Elsewhere it has a name of its own until then: two may write it.
        written = f"{self.path}.{uuid.uuid4().hex}{PARTIAL_SUFFIX}" if self.can_rename else self.path
        self.make_parent()
        try:
            with self.filesystem.open_output_stream(written) as file:
                file.write(content)
            if self.filesystem.type_name == "local":
                _fsync(written)
            if written != self.path:
                self.filesystem.move(written, self.path)
            if self.filesystem.type_name == "local":
                _fsync(self.path.rpartition("/")[0])
        except OSError:
            if written != self.path:
                with contextlib.suppress(OSError):
                    self.filesystem.delete_file(written)
            raise

    def make_folder(self) -> None:
        """And those above it, where there are such things. Raises OSError."""
        if self.has_folders:
            self.filesystem.create_dir(self.path, recursive=True)

    def make_parent(self) -> None:
        """Make the folders above a file. Raises OSError."""
        replace(self, path=self.path.rpartition("/")[0]).make_folder()

    def names(self) -> list[str]:
        """What lies directly in a folder, files and folders, sorted. Raises UserError if it cannot be listed."""
        try:
            found = self.filesystem.get_file_info(fs.FileSelector(self.path, allow_not_found=not self.has_folders))
            return sorted(info.base_name for info in found)
        except OSError as error:
            raise self._error("list", error) from None

    def remove(self) -> None:
        """Delete a file; nothing happens if it is not there. Raises UserError if it stays."""
        try:
            self.filesystem.delete_file(self.path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._error("remove", error) from None

    def files(self) -> list[StoredFile]:
        """The files below a folder, or the file itself, sorted by path. Hidden ones (``.x``, ``_x``) are left out.

        Raises UserError where nothing is there.
        """
        try:
            info = self.filesystem.get_file_info(self.path)
            if info.type == fs.FileType.NotFound:
                if not self.has_folders:
                    self.filesystem.get_file_info(fs.FileSelector(self.path))  # which tells of a bucket that is missing
                raise UserError(f"there is nothing at {self.uri}; set {self.option}")
            found = [info] if info.type == fs.FileType.File else self._below()
        except OSError as error:
            raise self._error("list", error) from None
        return sorted((StoredFile(file.path, file.size, file.mtime) for file in found), key=lambda file: file.path)

    def parquet_files(self, recursive: bool) -> list[StoredFile]:
        """The files of a folder that are named as Parquet files are, or such a file itself. UserError if there is none."""
        found = [file for file in self.files() if file.path.endswith(tuple(PARQUET_SUFFIXES))]
        if not recursive:
            found = [file for file in found if "/" not in file.path[len(self.path) :].strip("/")]
        if not found:
            raise UserError(
                f"{self.uri} is or holds no .parquet file; set {self.option} to a Parquet file, whose name must end so "
                "or in .pq, or to a folder of them"
            )
        return found

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
            raise self._error("remove", error) from None

    def _error(self, verb: str, error: Exception) -> UserError:
        return UserError(f"cannot {verb} {self.uri}: {describe_error(error)}; set {self.option}")


def _fsync(path: str) -> None:
    """Have a file, or the names in a folder, on the disk: what a run says is written outlives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def relative_to_cwd(path: str) -> str:
    """A path as a person at the working directory would write it; the shipped sample's are absolute. URIs stay as they are."""
    return path.removeprefix(f"{os.getcwd()}/")


def open_location(uri: str, option: str) -> Location:
    """Open a URI or a local path, which ``option`` sets.

    Raises:
        UserError: no filesystem is known for its scheme; it holds a password, which the message does not repeat; or a submitted
            job would write to its own working directory.
    """
    if "://" not in uri:
        path = os.path.expanduser(uri)
        if option.startswith("--output") and not os.path.isabs(path) and _SUBMITTED_JOB_VARIABLE in os.environ:
            raise UserError(f"{uri} would go when the job ends; set {option} to a URI, or a whole path, that all nodes reach")
        return Location(uri, fs.LocalFileSystem(), os.path.abspath(path), option)
    refuse_secrets(uri, option)
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
        if isinstance(filesystem, fs.S3FileSystem):
            filesystem = open_s3(*filesystem.__reduce__()[1])
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"cannot open {uri}: {describe_error(error)}; set {option}") from None
    return Location(uri, filesystem, path, option)
