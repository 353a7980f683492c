"""Found by every Python process that has this folder in PYTHONPATH: kills it, once, at a step of how a file is written.

KILL_AT=<part of the path>:<before|amid|after>:<a file that marks that it has happened>
KILL_TOO=<a file with the id of a process that is killed as well>
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
            _arm(module.Place, *os.environ["KILL_AT"].split(":"))

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _arm(place: Any, part: str, when: str, marker: str) -> None:
    put = place._put

    def put_and_die(self: Any, content: Any) -> None:
        if part not in self.path or os.path.exists(marker):
            return put(self, content)
        if when == "after":
            put(self, content)
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return None if when == "after" else put(self, content)
        if when == "amid" and self.has_folders:  # what is left of a file that was being written; in an object store nothing
            self.filesystem.create_dir(self.path.rpartition("/")[0], recursive=True)
            with self.filesystem.open_output_stream(f"{self.path}.0.part") as file:
                file.write(memoryview(content)[: len(memoryview(content)) // 2])
        if too := os.environ.get("KILL_TOO"):
            with open(too) as file:
                os.kill(int(file.read()), signal.SIGKILL)
        return os.kill(os.getpid(), signal.SIGKILL)

    place._put = put_and_die


if "KILL_AT" in os.environ:
    sys.meta_path.insert(0, _Finder())
