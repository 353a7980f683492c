"""Find and open the files of an input: folders, globs, archives, URLs and object stores, compressed or not.

It deals with names and bytes only. Errors of filesystems become a UserError that names the input.
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
"""Purpose of an input, which is also the name of its ``--input`` option."""

ROLES: tuple[Role, ...] = ("train", "dev", "test")

FORMATS = {".tsv": "tsv", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
STORES = ("s3://", "gs://", "gcs://", "hdfs://")
READ_BYTES = 1 << 20
"""Bytes read at a time: each read of an object store is a request."""


def _open_zstd(file: Any, **_: Any) -> io.BufferedReader:
    return io.BufferedReader(cast(io.RawIOBase, pa.CompressedInputStream(pa.PythonFile(file, "r"), "zstd")))


# fsspec needs an extra package for .zst, and that package accepts a truncated file. Arrow's decompressor rejects it.
fsspec.compression.register_compression("zstd", _open_zstd, "zst", force=True)


def find_files(path: str, role: Role, file_format: str) -> list[tuple[str, OpenFile]]:
    """Return the file at a path, the files that match a glob, or the files of a folder whose extension fits the format."""
    with as_user_error(path, role):
        if path.startswith(STORES) and "::" not in path:
            location = open_location(path, f"--input.{role}")
            filesystem = _ArrowFilesystem(location.filesystem)
            names = filesystem.glob(location.path) or [location.path]
        else:
            filesystem, _, names = fsspec.get_fs_token_paths(path, expand=True)
        if len(names) == 1 and filesystem.isdir(names[0]):
            folder = names[0]
            visible = [name for name in _walk(filesystem, folder) if not re.search(r"/[._]", name[len(folder) :])]
            names = [name for name in visible if FORMATS.get(file_extension(name), "lines") == file_format]
        if not names or not all(filesystem.exists(name) for name in names):
            raise FileNotFoundError
        return [
            (path if len(names) == 1 else name, OpenFile(filesystem, name, compression=_compression(name)))
            for name in sorted(names)
        ]


def _compression(name: str) -> str | None:
    compression: str | None = fsspec.utils.infer_compression(strip_query(name))
    return compression


class _ArrowFilesystem(ArrowFSWrapper):  # type: ignore[misc]
    """A pyarrow filesystem for fsspec that reads ahead: decompressors ask for small parts."""

    def _open(self, path: str, mode: str = "rb", **options: Any) -> io.BufferedReader:
        return io.BufferedReader(super()._open(path, mode, **options), READ_BYTES)


def _walk(filesystem: Any, folder: str) -> list[str]:
    """Return all files below a folder. fsspec's own search silently skips folders that cannot be listed."""
    if isinstance(filesystem, _ArrowFilesystem):
        infos = filesystem.fs.get_file_info(fs.FileSelector(folder, recursive=True))
        return [info.path for info in infos if info.is_file]
    if not isinstance(filesystem, LocalFileSystem):
        names: list[str] = filesystem.find(folder)
        return names
    files, visited = list[str](), set[str]()
    for parent, folders, names in os.walk(folder, onerror=_raise, followlinks=True):
        if (real_path := os.path.realpath(parent)) in visited:  # a cycle of symbolic links
            folders.clear()
            continue
        visited.add(real_path)
        files += [f"{parent}/{name}" for name in names]
    return files


def _raise(error: OSError) -> None:
    raise error


@contextlib.contextmanager
def as_user_error(path: str, role: Role) -> Iterator[None]:
    """Turn errors of filesystems, decompressors and archives into a UserError that names the path and its option."""
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"no file at {path}; set --input.{role}") from None
    except Exception as error:  # the errors of fsspec's filesystems have no common base class
        raise UserError(f"cannot read {path}: {describe_error(error)}; repair it or set --input.{role}") from None


def file_extension(name: str) -> str:
    """Return a file's extension without that of a compression, such as ``.tsv`` for ``a.tsv.xz``."""
    name = strip_query(name).lower()
    for compression in (".xz", ".gz", ".bz2", ".zst"):
        name = name.removesuffix(compression)
    return "." + name.rpartition(".")[2]


def strip_query(uri: str) -> str:
    """Return a URI without its query (``?name=value``). A ``?`` without ``=`` is a glob character and stays."""
    return re.sub(r"\?[^?/]*=.*$", "", uri) if "://" in uri else uri
