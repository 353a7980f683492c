"""Prometheus and its Pushgateway, started for a test."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest

DEPLOY = Path(__file__).parents[1] / "deploy" / "grafana"


def program(name: str) -> str:
    """Its path; the test is skipped where it is not installed."""
    package = {"promtool": "prometheus"}.get(name, name)
    return shutil.which(name) or pytest.skip(f"needs {name}: apt-get install {package}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@contextlib.contextmanager
def serving(*command: str, url: str, folder: Path) -> Iterator[None]:
    """A server that runs while the block does, from when it answers."""
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    try:
        for _ in range(100):
            with contextlib.suppress(URLError, ConnectionError):
                urlopen(url, timeout=5).close()
                break
            assert process.poll() is None, (folder / "server.log").read_text()
            time.sleep(0.1)
        yield
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def pushgateway(folder: Path) -> Iterator[str]:
    """Its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    # Debian's gateway keeps what it was told in a file, by default one for all that run.
    options = [f"--web.listen-address=127.0.0.1:{port}", f"--persistence.file={folder}/pushed"]
    with serving(program("prometheus-pushgateway"), *options, url=f"{url}/-/ready", folder=folder):
        yield url


@contextlib.contextmanager
def prometheus(folder: Path, config: str) -> Iterator[str]:
    """Its URL. config: the text of its configuration."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    (folder / "prometheus.yaml").write_text(config)
    options = [f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"]
    listen = f"--web.listen-address=127.0.0.1:{port}"
    with serving(program("prometheus"), *options, listen, url=f"{url}/-/ready", folder=folder):
        yield url


def ask(prometheus: str, expression: str, **at: float) -> list[dict[str, Any]]:
    """The series of an expression now; or, with start and end, over that time, second by second."""
    kind = ("query_range", {"step": 1}) if at else ("query", {})
    with urlopen(f"{prometheus}/api/v1/{kind[0]}?{urlencode({'query': expression, **kind[1], **at})}", timeout=30) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return found
