"""Nodes that deploy/cluster/cluster.sh starts on this machine, each with a folder and ports of its own as a machine has."""

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
    """A folder and ports."""

    home: Path
    port: int

    @property
    def environment(self) -> dict[str, str]:
        """Of a command on it."""
        known = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "NIGHTSHIFT_"))}
        return {**known, "NIGHTSHIFT_HOME": str(self.home), "NIGHTSHIFT_PORT": str(self.port)}

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """A line for bash, in the checkout, after deploy/cluster/environment.sh; its errors are in its output."""
        try:
            return subprocess.run(timeout=_TIMEOUT_S, stdout=subprocess.PIPE, **self._shell(command))
        except subprocess.TimeoutExpired as late:
            raise AssertionError(f"{command} did not end, and said {late.output!r}") from None

    def start(self, command: str) -> subprocess.Popen[str]:
        """The same, while others run."""
        return subprocess.Popen(stdout=subprocess.PIPE, **self._shell(command))

    def _shell(self, command: str) -> dict[str, Any]:
        line = f"set -e; source deploy/cluster/environment.sh; {command}"
        return {"args": ["bash", "-c", line], "cwd": ROOT, "env": self.environment, "stderr": subprocess.STDOUT, "text": True}

    def succeed(self, command: str) -> str:
        """What a line printed, which must end well."""
        ran = self.run(command)
        assert ran.returncode == 0, ran.stdout
        return ran.stdout

    def submit(self, words: str) -> str:
        """The line that submits a job, as deploy/README.md has it."""
        return f"python deploy/cluster/submit.py python -m jobs.{words}"

    @property
    def processes(self) -> list[psutil.Process]:
        """Of its node: what cluster.sh has started, and all below."""
        try:
            node = psutil.Process(int((self.home / "node.pid").read_text()))
            return [node, *node.children(recursive=True)]
        except (OSError, psutil.NoSuchProcess):
            return []

    def kill(self) -> None:
        """The whole machine at once."""
        for process in self.processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)


@contextlib.contextmanager
def machines(cpus: Sequence[int]) -> Iterator[list[Machine]]:
    """While the block runs, a head and workers that have so many CPUs each."""
    folder = Path(tempfile.mkdtemp(prefix="m"))  # of a short name: a socket's path has room for 107 characters
    first = free_ports(len(cpus))
    started = [Machine(folder / str(number), first + PORTS * number) for number in range(len(cpus))]
    head, *workers = started
    options = f"--object-store-memory {_OBJECT_STORE} --num-cpus"
    try:
        head.succeed("deploy/cluster/cluster.sh token")
        head.succeed(f"deploy/cluster/cluster.sh head {options} {cpus[0]}")
        for worker, some in zip(workers, cpus[1:], strict=True):
            worker.home.mkdir()
            shutil.copy(head.home / "token", worker.home)
            worker.succeed(f"deploy/cluster/cluster.sh worker {get_node_ip_address()}:{head.port} {options} {some}")
        yield started
    finally:
        for machine in reversed(started):
            machine.kill()
        shutil.rmtree(folder, ignore_errors=True)


def free_ports(number: int) -> int:
    """The first port of so many machines in a row, none of which is taken yet."""
    for first in range(20_000, 32_000 - PORTS * number, PORTS):
        with contextlib.ExitStack() as opened:
            try:
                for port in (first + PORTS * machine + offset for machine in range(number) for offset in range(20)):
                    opened.enter_context(socket.create_server(("", port)))
            except OSError:
                continue
            return first
    raise AssertionError("no ports are free")
