"""Kill a process, once, when it writes a certain file. Python imports this module if its folder is in PYTHONPATH.

Environment variables:
    KILL_AT: PATH_PART:before|during|after:MARKER; the file MARKER records that the kill has happened.
    KILL_ALSO: file with the id of another process to kill.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import signal
import sys
from types import ModuleType
from typing import Any

_MODULE = "pipeline.io.location"


class _Finder(importlib.abc.MetaPathFinder):
    """Patches the module that writes files as soon as it is imported."""

    def find_spec(self, name: str, *_: Any) -> Any:
        if name != _MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _patch(module.Location, *os.environ["KILL_AT"].split(":"))

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _patch(location: Any, path_part: str, moment: str, marker: str) -> None:
    put = location._put

    def put_and_die(self: Any, content: Any) -> None:
        if path_part not in self.path or os.path.exists(marker):
            return put(self, content)
        if moment == "after":
            put(self, content)
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:  # another process was first
            return None if moment == "after" else put(self, content)
        if moment == "during" and self.has_folders:  # leave half a file; an object store shows nothing before the end
            self.filesystem.create_dir(self.path.rpartition("/")[0], recursive=True)
            with self.filesystem.open_output_stream(f"{self.path}.0.part") as file:
                file.write(memoryview(content)[: len(memoryview(content)) // 2])
        if also := os.environ.get("KILL_ALSO"):
            with open(also) as file:
                os.kill(int(file.read()), signal.SIGKILL)
        return os.kill(os.getpid(), signal.SIGKILL)

    location._put = put_and_die


if "KILL_AT" in os.environ:
    sys.meta_path.insert(0, _Finder())
