"""Files that a job writes at its end, after work that a mistake with the path must not cost."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pyarrow as pa
from pyarrow import fs

from pipeline.errors import UserError
from pipeline.storage import PART, in_words, place


@contextlib.contextmanager
def appearing(uri: str, option: str) -> Iterator[pa.NativeFile]:
    """A file to write that appears whole at the end or not at all. One that cannot be written is found out at once.

    Raises:
        UserError: it cannot; the error names the option, which sets the URI.
    """
    target = place(uri, option)
    part = target.path + PART
    try:
        if target.filesystem.get_file_info(target.path).type == fs.FileType.Directory:
            raise UserError(f"cannot write {uri}: it is a folder; set {option} to a file")
        target.make_room()
        if not target.has_folders:  # a file is opened there once there is something to send
            target.beside(PART).write(b"")
        file = target.filesystem.open_output_stream(part)
        try:
            with file:
                yield file
        except BaseException:
            target.filesystem.delete_file(part)
            raise
        target.filesystem.move(part, target.path)
    except OSError as error:
        raise UserError(f"cannot write {uri}: {in_words(error)}; set {option}") from None
