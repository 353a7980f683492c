"""A Ray cluster of three nodes on this machine, each a raylet of its own."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_NODES, _OBJECT_STORE = 3, 200 * 2**20


@dataclass
class Cluster:
    """Ray's nodes, each a raylet of its own on this machine."""

    port: int
    folder: Path
    cpus: int
    nodes: list[psutil.Process] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """Of a command that joins it."""
        return {"RAY_ADDRESS": f"127.0.0.1:{self.port}", "RAY_AUTH_MODE": "disabled"}

    def start_node(self) -> None:
        """The first is the head. Returns once its raylet runs."""
        before = set(self.raylets())
        where = [f"--address=127.0.0.1:{self.port}"]
        if not self.nodes:
            where = ["--head", f"--port={self.port}", "--include-dashboard=false", f"--temp-dir={self.folder}"]
        options = [f"--num-cpus={self.cpus}", f"--object-store-memory={_OBJECT_STORE}", "--disable-usage-stats"]
        ray = Path(sys.executable).with_name("ray")
        subprocess.run(
            [str(ray), "start", *where, *options],
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
            check=True,
            capture_output=True,
        )
        [started] = set(self.raylets()) - before
        self.nodes.append(started)

    def raylets(self) -> list[psutil.Process]:
        """The processes that each are a node."""
        return _titled(f":{self.port}", program="raylet/raylet")

    def workers(self, word: str = "") -> list[psutil.Process]:
        """Ray's workers with this word in their title."""
        found = []
        for node in self.nodes:
            with contextlib.suppress(psutil.Error):
                for process in node.children(recursive=True):
                    title = " ".join(process.cmdline())
                    if title.startswith("ray::") and word in title and "Agent" not in title:  # no node lives without its agents
                        found.append(process)
        return found

    def kill_a_node(self, choice: random.Random) -> bool:
        """Not the head, where the driver is; another takes its place."""
        victim = choice.choice(self.nodes[1:])
        victim.kill()
        self.nodes.remove(victim)
        self.start_node()
        return True


@contextlib.contextmanager
def three_nodes(cpus: int = 1) -> Iterator[Cluster]:
    """While the block runs. cpus: of each node."""
    folder = Path(tempfile.mkdtemp(prefix="nodes"))  # of a short name: a socket's path has room for 107 characters
    cluster = Cluster(port=27_000 + os.getpid() % 1000, folder=folder, cpus=cpus)
    try:
        for _ in range(_NODES):
            cluster.start_node()
        yield cluster
    finally:
        for process in [*cluster.workers(), *_titled(f":{cluster.port}"), *_titled(str(cluster.folder))]:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def _titled(word: str, program: str = "") -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended
            command = process.cmdline()  # of a zombie there is none
            if command and command[0].endswith(program) and word in " ".join(command):
                found.append(process)
    return found
