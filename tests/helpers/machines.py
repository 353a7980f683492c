"""Nodes of a cluster that deploy/cluster/cluster.sh starts here, each with a folder and ports of its own, like a machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ray.util import get_node_ip_address

ROOT = Path(__file__).parents[2]
PORTS = 1000
_OBJECT_STORE, _TIMEOUT_S = 200 * 2**20, 240


@dataclass(frozen=True)
class Machine:
    """A simulated machine: a home folder and the first of its ports."""

    home: Path
    port: int

    @property
    def environment(self) -> dict[str, str]:
        """Environment variables of a command on the machine."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "NIGHTSHIFT_"))}
        return {**inherited, "NIGHTSHIFT_HOME": str(self.home), "NIGHTSHIFT_PORT": str(self.port)}

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a line of bash in the checkout, after deploy/cluster/environment.sh. Its stdout includes its stderr."""
        try:
            return subprocess.run(timeout=_TIMEOUT_S, stdout=subprocess.PIPE, **self._shell(command))
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"{command} did not end, and printed {error.output!r}") from None

    def start(self, command: str) -> subprocess.Popen[str]:
        """Start the same in the background."""
        return subprocess.Popen(stdout=subprocess.PIPE, **self._shell(command))

    def _shell(self, command: str) -> dict[str, Any]:
        line = f"set -e; source deploy/cluster/environment.sh; {command}"
        return {"args": ["bash", "-c", line], "cwd": ROOT, "env": self.environment, "stderr": subprocess.STDOUT, "text": True}

    def succeed(self, command: str) -> str:
        """Run a line, which must succeed, and return what it printed."""
        result = self.run(command)
        assert result.returncode == 0, result.stdout
        return result.stdout

    @property
    def processes(self) -> list[psutil.Process]:
        """Processes of its node: the one that cluster.sh has started, and all of its children."""
        try:
            node = psutil.Process(int((self.home / "node.pid").read_text()))
            return [node, *node.children(recursive=True)]
        except (OSError, psutil.NoSuchProcess):
            return []

    def kill(self) -> None:
        """Kill all processes of the node at once."""
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)


@contextlib.contextmanager
def machines(cpus: Sequence[int]) -> Iterator[list[Machine]]:
    """Start a head and workers with these numbers of CPUs."""
    folder = Path(tempfile.mkdtemp(prefix="m"))  # a short name: the path of a socket has at most 107 characters
    first = first_free_port(len(cpus))
    all_machines = [Machine(folder / str(number), first + PORTS * number) for number in range(len(cpus))]
    head, *workers = all_machines
    options = f"--object-store-memory {_OBJECT_STORE} --num-cpus"
    try:
        head.succeed("deploy/cluster/cluster.sh token")
        head.succeed(f"deploy/cluster/cluster.sh head {options} {cpus[0]}")
        for worker, worker_cpus in zip(workers, cpus[1:], strict=True):
            worker.home.mkdir()
            shutil.copy(head.home / "token", worker.home)
            worker.succeed(f"deploy/cluster/cluster.sh worker {get_node_ip_address()}:{head.port} {options} {worker_cpus}")
        yield all_machines
    finally:
        for machine in reversed(all_machines):
            machine.kill()
        shutil.rmtree(folder, ignore_errors=True)


def submit_command(job: str) -> str:
    """Return the command that submits a job with its options, as in deploy/README.md."""
    return f"python deploy/cluster/submit.py python -m jobs.{job}"


def first_free_port(machines: int) -> int:
    """Return the first port of a range in which the ports of these many machines are free."""
    for first in range(20_000, 32_000 - PORTS * machines, PORTS):
        with contextlib.ExitStack() as stack:
            try:
                for port in (first + PORTS * machine + offset for machine in range(machines) for offset in range(20)):
                    stack.enter_context(socket.create_server(("", port)))
            except OSError:
                continue
            return first
    raise AssertionError("no ports are free")
