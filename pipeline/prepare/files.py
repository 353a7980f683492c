"""Which files an input is, and how they are opened: folders, globs, archives, URLs and stores, compressed or not.

Knows names and bytes; nothing of what is in a file. What a filesystem raises comes out as a UserError that names the input.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Iterator
from typing import Any, Literal, cast

import fsspec
import fsspec.compression
import fsspec.utils
import pyarrow as pa
from fsspec.core import OpenFile
from fsspec.implementations.arrow import ArrowFSWrapper
from fsspec.implementations.local import LocalFileSystem
from pyarrow import fs

from pipeline.errors import UserError, describe_error
from pipeline.io.location import open_location

Role = Literal["train", "dev", "test"]
"""What an input is for: the ``--input`` option that names it."""
ROLES: tuple[Role, ...] = ("train", "dev", "test")

FORMATS = {".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
STORES = ("s3://", "gs://", "gcs://", "hdfs://")
READ_BYTES = 1 << 20
"""At a time: in a store far away each is a request."""


def _open_zstd(file: Any, **_: Any) -> io.BufferedReader:
    return io.BufferedReader(cast(io.RawIOBase, pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")))


# fsspec opens .zst only where a further package is installed, which then takes a file that breaks off for a whole one. Arrow
# brings a decompressor along that does not.
fsspec.compression.register_compression("zstd", _open_zstd, "zst", force=True)


def find_files(path: str, role: Role, kind: str) -> list[tuple[str, OpenFile]]:
    """The files at a path: one, those that a glob matches, or those of a folder whose names end as the format's do."""
    with reading(path, role):
        if path.startswith(STORES) and "::" not in path:
            at = open_location(path, f"--input.{role}")
            filesystem, names = _Store(at.filesystem), [at.path]
            names = filesystem.glob(at.path) or names
        else:
            filesystem, _, names = fsspec.get_fs_token_paths(path, expand=True)
        if len(names) == 1 and filesystem.isdir(names[0]):
            folder = names[0]
            visible = [name for name in _walk(filesystem, folder) if not re.search(r"/[._]", name[len(folder) :])]
            names = [name for name in visible if FORMATS.get(ending_of(name), "lines") == kind]
        if not names or not all(filesystem.exists(name) for name in names):
            raise FileNotFoundError
        return [
            (path if len(names) == 1 else name, OpenFile(filesystem, name, compression=_compression(name)))
            for name in sorted(names)
        ]


def _compression(name: str) -> str | None:
    found: str | None = fsspec.utils.infer_compression(without_query(name))
    return found


class _Store(ArrowFSWrapper):  # type: ignore[misc]
    """A store of pyarrow's as fsspec has them, read in larger parts than decompressors ask for."""

    def _open(self, path: str, mode: str = "rb", **options: Any) -> io.BufferedReader:
        return io.BufferedReader(super()._open(path, mode, **options), READ_BYTES)


def _walk(filesystem: Any, folder: str) -> list[str]:
    """The files of a folder. fsspec's own search leaves out folders that cannot be listed, and says nothing."""
    if isinstance(filesystem, _Store):
        found = filesystem.fs.get_file_info(fs.FileSelector(folder, recursive=True))
        return [info.path for info in found if info.is_file]
    if not isinstance(filesystem, LocalFileSystem):
        names: list[str] = filesystem.find(folder)
        return names
    files, seen = list[str](), set[str]()
    for at, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        if (real := os.path.realpath(at)) in seen:  # by a link, which may go round
            folders.clear()
            continue
        seen.add(real)
        files += [f"{at}/{name}" for name in names]
    return files


def _raise(error: OSError) -> None:
    raise error


@contextlib.contextmanager
def reading(path: str, role: Role) -> Iterator[None]:
    """Turn what filesystems, decompressors and archives raise into a UserError that names the path and its option."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"no file at {path}; set --input.{role}") from None
    except Exception as error:  # of all of fsspec's filesystems: no common base
        raise UserError(f"cannot read {path}: {describe_error(error)}; mend it or set --input.{role}") from None


def ending_of(name: str) -> str:
    """The last ending of a file's name that tells no compression, such as ``.tsv`` of ``a.tsv.xz``."""
    name = without_query(name).lower()
    for compression in (".xz", ".gz", ".bz2", ".zst"):
        name = name.removesuffix(compression)
    return "." + name.rpartition(".")[2]


def without_query(uri: str) -> str:
    """A URI without what is asked of its server, in which a ``?`` alone stands for a letter."""
    return re.sub(r"\?[^?/]*=.*$", "", uri) if "://" in uri else uri
