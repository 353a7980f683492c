"""Files by URI: plain local paths, ``file``, ``s3``, ``gs``, ``hdfs``, through pyarrow's filesystems.

Knows where bytes lie, not what they mean. What a user can mend comes out as a UserError that names the URI and the
option that sets it.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import uuid
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import pyarrow as pa
from pyarrow import fs

from pipeline.errors import UserError

PARQUET_ENDINGS = [".parquet", ".pq"]
"""Of the names of Parquet files. Training's reader, Ray Data's own, takes no file of another name."""
TRIES, PAUSE_S = 4, 0.5
"""Of reading or writing a file during a run; the pause doubles each time."""
S3_TRIES, S3_CONNECT_S, S3_ANSWER_S = 5, 3.0, 10.0
"""Of each request, with pauses of up to 1, 2, 4 and 8 seconds: what never answers is given up after a minute or so."""
_AT_ONCE_BYTES = 2**18
PART = ".part"
"""Ends the name of a file that is being written, where a rename then puts it in its place."""
_SUBMITTED = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Ray sets it where a process was started by ``ray job submit``, in a folder that Ray removes afterwards."""


@dataclass(frozen=True)
class StoredFile:
    """A file found by ``Place.files``. path: as its filesystem spells it; size in bytes; modified in UTC, if known."""

    path: str
    size: int
    modified: datetime | None


@dataclass(frozen=True)
class Place:
    """A URI opened: its filesystem, the path within it, and the option that sets it, which errors name."""

    uri: str
    filesystem: fs.FileSystem
    path: str
    option: str

    @property
    def renames(self) -> bool:
        """Whether files and folders are renamed at once, and not, as in an object store, by copying each file."""
        return self.filesystem.type_name in ("local", "hdfs")

    @property
    def has_folders(self) -> bool:
        """Whether a folder is a thing of its own, and not just what names of files begin with, which goes with the last."""
        return self.filesystem.type_name not in ("s3", "gcs", "abfs")

    def child(self, name: str) -> Place:
        """The place of ``name`` under this one."""
        return self.beside(f"/{name}")

    def beside(self, ending: str) -> Place:
        """The place whose name is this one's with ``ending`` after it."""
        address, question, query = self.uri.partition("?")
        return replace(self, uri=f"{address.rstrip('/')}{ending}{question}{query}", path=self.path.rstrip("/") + ending)

    def contains(self, other: Place) -> bool:
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

    def write_patiently(self, content: bytes | pa.Buffer) -> None:
        """As ``write``, but a storage that fails for a moment does not end a night's run."""
        for failures in range(TRIES - 1):
            with contextlib.suppress(OSError):
                return self._put(content)
            time.sleep(PAUSE_S * 2**failures)
        return self.write(content)

    def _put(self, content: bytes | pa.Buffer) -> None:
        # An object store shows a file once it is closed. Elsewhere it has a name of its own until then: two may write it.
        written = f"{self.path}.{uuid.uuid4().hex}{PART}" if self.renames else self.path
        self.make_room()
        try:
            with self.filesystem.open_output_stream(written) as file:
                file.write(content)
            if self.filesystem.type_name == "local":
                _keep(written)
            if written != self.path:
                self.filesystem.move(written, self.path)
            if self.filesystem.type_name == "local":
                _keep(self.path.rpartition("/")[0])
        except OSError:
            if written != self.path:
                with contextlib.suppress(OSError):
                    self.filesystem.delete_file(written)
            raise

    def make_folder(self) -> None:
        """And those above it, where there are such things. Raises OSError."""
        if self.has_folders:
            self.filesystem.create_dir(self.path, recursive=True)

    def make_room(self) -> None:
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
        found = [file for file in self.files() if file.path.endswith(tuple(PARQUET_ENDINGS))]
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
        return UserError(f"cannot {verb} {self.uri}: {in_words(error)}; set {self.option}")


def _keep(path: str) -> None:
    """Have a file, or the names in a folder, on the disk: what a run says is written outlives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def from_here(path: str) -> str:
    """A path as a person at the working directory would write it; the shipped sample's are absolute. URIs stay as they are."""
    return path.removeprefix(f"{os.getcwd()}/")


def place(uri: str, option: str) -> Place:
    """Open a URI or a local path, which ``option`` sets.

    Raises:
        UserError: no filesystem is known for its scheme; it holds a password, which the message does not repeat; or a submitted
            job would write to its own working directory.
    """
    if "://" not in uri:
        path = os.path.expanduser(uri)
        if option.startswith("--output") and not os.path.isabs(path) and _SUBMITTED in os.environ:
            raise UserError(f"{uri} would go when the job ends; set {option} to a URI, or a whole path, that all nodes reach")
        return Place(uri, fs.LocalFileSystem(), os.path.abspath(path), option)
    refuse_secrets(uri, option)
    try:
        filesystem, path = fs.FileSystem.from_uri(uri)
        if isinstance(filesystem, fs.S3FileSystem):
            filesystem = _s3(*filesystem.__reduce__()[1])
    except (OSError, pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise UserError(f"cannot open {uri}: {in_words(error)}; set {option}") from None
    return Place(uri, filesystem, path, option)


def refuse_secrets(uri: str, option: str) -> None:
    """UserError, which does not repeat them, if a URI holds any: it is written to manifests, logs and pages."""
    if holds_secrets(uri):
        raise UserError(
            f"{option} holds credentials, which do not belong in a URI: take them out, and give those of S3 in the environment "
            "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), a profile (AWS_PROFILE) or by the machine's role"
        )


def holds_secrets(uri: str) -> bool:
    """Whether there is a password, or what looks like one, in a URI."""
    scheme, _, rest = uri.partition("://")
    address, _, query = rest.partition("?")
    server, names = address.partition("/")[0], [each.partition("=")[0] for each in query.split("&")]
    # A secret may have a slash in it, and then what comes before that is no bucket's name either.
    in_server = bool({"@", ":"} & set(server)) if scheme == "s3" else ":" in server.rpartition("@")[0]
    return in_server or any(names_secret(name) for name in names)


def names_secret(name: str) -> bool:
    """Whether a parameter or property of this name holds what nobody else is to read."""
    return re.search("passw|secret|token|credential|key|authorization|connection.string", name, re.IGNORECASE) is not None


class S3(fs.S3FileSystem):  # type: ignore[misc]
    """S3 for a run of hours, with what a URI says of the server.

    Each request is tried again where it fails for a moment; what pyarrow sends to another process forgets how often. Small
    files are written in one request.
    """

    def __init__(self, **of_uri: Any) -> None:
        if of_uri["endpoint_override"]:
            # Not every server but Amazon's knows the checksums that its library else writes after what is sent.
            os.environ.setdefault("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
        own = {
            "retry_strategy": fs.AwsStandardS3RetryStrategy(max_attempts=S3_TRIES),
            "connect_timeout": S3_CONNECT_S,
            "request_timeout": S3_ANSWER_S,
            "allow_delayed_open": True,
        }
        super().__init__(**{**of_uri, **own})

    def open_input_file(self, path: str) -> pa.NativeFile:
        """A file to read; of a small one all is read at once.

        The library takes an answer of 503 to a read of fewer bytes than are in the answer for a fault of its own, which it does
        not try again ("Failed to flush response stream").
        """
        file = super().open_input_file(path)
        if (size := file.size()) > _AT_ONCE_BYTES:
            return file
        with file:
            for failures in range(TRIES - 1):
                try:
                    return pa.BufferReader(file.read_at(size, 0))
                except OSError as error:
                    if "INTERNAL_FAILURE" not in str(error):
                        raise
                time.sleep(PAUSE_S * 2**failures)
            return pa.BufferReader(file.read_at(size, 0))

    def __reduce__(self) -> tuple[Any, ...]:
        return _s3, super().__reduce__()[1]


def _s3(of_uri: dict[str, Any]) -> S3:
    return S3(**of_uri)


_SAID_BY_S3 = {
    "NO_SUCH_BUCKET": "there is no such bucket",
    "ACCESS_DENIED|SIGNATURE_DOES_NOT_MATCH|INVALID_ACCESS_KEY_ID|INVALID_SIGNATURE|UNRECOGNIZED_CLIENT|EXPIRED_TOKEN|"
    "REQUEST_EXPIRED|MISSING_AUTHENTICATION_TOKEN": "the server does not grant this to the credentials that it was shown, "
    "those of the environment, of a profile or of the machine's role",
    "NETWORK_CONNECTION": "the server does not answer",
}


def in_words(error: Exception) -> str:
    """An error's own words on one line; for the system's errors just what went wrong."""
    if isinstance(error, OSError) and error.errno and error.errno > 0:  # name resolution counts its own below 0
        return os.strerror(error.errno)
    told = " ".join(str(error).split()) or type(error).__name__
    said = re.search(r"AWS Error ([A-Z_]+)", told)
    known = next((words for codes, words in _SAID_BY_S3.items() if said and said[1] in codes.split("|")), None)
    return f"{known} ({told})" if known else told
