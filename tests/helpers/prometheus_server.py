"""Start Prometheus and its Pushgateway for a test."""

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

DEPLOY = Path(__file__).parents[2] / "deploy" / "grafana"


def program(name: str) -> str:
    """Return the path of a program; skip the test if it is not installed."""
    package = {"promtool": "prometheus"}.get(name, name)
    return shutil.which(name) or pytest.skip(f"needs {name}: apt-get install {package}")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@contextlib.contextmanager
def _run_server(*command: str, url: str, folder: Path) -> Iterator[None]:
    """Run a server during the block, which starts once the server answers."""
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
    """Run a Pushgateway during the block; yield its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    # Debian's gateway stores metrics in a file, by default the same one for all processes.
    options = [f"--web.listen-address=127.0.0.1:{port}", f"--persistence.file={folder}/pushed"]
    with _run_server(program("prometheus-pushgateway"), *options, url=f"{url}/-/ready", folder=folder):
        yield url


@contextlib.contextmanager
def prometheus(folder: Path, config: str) -> Iterator[str]:
    """Run Prometheus with this configuration during the block; yield its URL."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    (folder / "prometheus.yaml").write_text(config)
    options = [f"--config.file={folder}/prometheus.yaml", f"--storage.tsdb.path={folder}/data"]
    listen = f"--web.listen-address=127.0.0.1:{port}"
    with _run_server(program("prometheus"), *options, listen, url=f"{url}/-/ready", folder=folder):
        yield url


def ask(prometheus: str, expression: str, **range_s: float) -> list[dict[str, Any]]:
    """Return the series of an expression: the current values, or with start and end one value per second."""
    endpoint, parameters = ("query_range", {"step": 1}) if range_s else ("query", {})
    query = urlencode({"query": expression, **parameters, **range_s})
    with urlopen(f"{prometheus}/api/v1/{endpoint}?{query}", timeout=30) as answer:
        series: list[dict[str, Any]] = json.load(answer)["data"]["result"]
    return series
