"""Ray's worker processes on this machine, and a cluster of three nodes, each with a raylet of its own."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_NODES, _OBJECT_STORE_BYTES = 3, 200 * 2**20


def ray_workers(title: str, parents: Iterable[psutil.Process]) -> list[psutil.Process]:
    """Return Ray's workers below these processes whose title, as Ray sets it, contains a word."""
    workers = []
    for parent in parents:
        with contextlib.suppress(psutil.Error):
            for process in parent.children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    command = " ".join(process.cmdline())
                    if command.startswith("ray::") and title in command and "Agent" not in command:  # nodes die without agents
                        workers.append(process)
    return workers


def local_worker_pids(title: str) -> list[int]:
    """Return the process ids of this process's Ray workers whose title contains a word."""
    return [worker.pid for worker in ray_workers(title, [psutil.Process()])]


@dataclass
class RayCluster:
    """A running cluster.

    Attributes:
        port: of the head.
        cpus: of each node.
        nodes: the raylets. The first one is the head's.
    """

    port: int
    folder: Path
    cpus: int
    nodes: list[psutil.Process] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of a command that joins the cluster."""
        return {"RAY_ADDRESS": f"127.0.0.1:{self.port}", "RAY_AUTH_MODE": "disabled"}

    def start_node(self) -> None:
        """Start a node and wait until its raylet runs. The first node is the head."""
        previous = set(self._raylets())
        role = [f"--address=127.0.0.1:{self.port}"]
        if not self.nodes:
            role = ["--head", f"--port={self.port}", "--include-dashboard=false", f"--temp-dir={self.folder}"]
        options = [f"--num-cpus={self.cpus}", f"--object-store-memory={_OBJECT_STORE_BYTES}", "--disable-usage-stats"]
        ray = Path(sys.executable).with_name("ray")
        subprocess.run(
            [str(ray), "start", *role, *options],
            env={**os.environ, "RAY_AUTH_MODE": "disabled"},
            check=True,
            capture_output=True,
        )
        [raylet] = set(self._raylets()) - previous
        self.nodes.append(raylet)

    def workers(self, title: str = "") -> list[psutil.Process]:
        """Return the workers whose title contains a word."""
        return ray_workers(title, self.nodes)

    def replace_node(self, rng: random.Random) -> None:
        """Kill a node other than the head and start another one."""
        victim = rng.choice(self.nodes[1:])
        victim.kill()
        self.nodes.remove(victim)
        self.start_node()

    def _raylets(self) -> list[psutil.Process]:
        return _processes_with(f":{self.port}", program="raylet/raylet")


@contextlib.contextmanager
def three_nodes(cpus: int = 1) -> Iterator[RayCluster]:
    """Run a cluster of three nodes with this number of CPUs each."""
    folder = Path(tempfile.mkdtemp(prefix="nodes"))  # a short name: the path of a socket has at most 107 characters
    cluster = RayCluster(port=27_000 + os.getpid() % 1000, folder=folder, cpus=cpus)
    try:
        for _ in range(_NODES):
            cluster.start_node()
        yield cluster
    finally:
        for process in [*cluster.workers(), *_processes_with(f":{cluster.port}"), *_processes_with(str(cluster.folder))]:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


def _processes_with(word: str, program: str = "") -> list[psutil.Process]:
    """Return the processes whose program has this name and whose command line contains a word."""
    matches = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it has ended
            command = process.cmdline()  # empty for a zombie
            if command and command[0].endswith(program) and word in " ".join(command):
                matches.append(process)
    return matches
