"""submit.py of the nightly CronJob, against a server that answers requests for RayJobs like the Kubernetes API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from manifests import KUBERAY

SUBMIT = KUBERAY / "components" / "nightly-cronjob" / "submit.py"
RAYJOBS = "/apis/ray.io/v1/namespaces/nightshift/rayjobs"
TEMPLATE = {
    "apiVersion": "ray.io/v1",
    "kind": "RayJob",
    "metadata": {"name": "template", "uid": "1", "resourceVersion": "7", "labels": {"app": "nightshift"}},
    "spec": {"suspend": True, "entrypoint": "python -m jobs.summarize"},
    "status": {"jobDeploymentStatus": "Suspended"},
}


class Kubernetes(ThreadingHTTPServer):
    """An API server.

    Attributes:
        jobs: RayJobs by name.
        upcoming: states of a new job, one for each request; a number is an HTTP error.
        methods: methods of all requests.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobs: dict[str, dict[str, Any]] = {"template": TEMPLATE}
        self.upcoming: list[dict[str, str] | int] = [{"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}]
        self.methods: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Kubernetes

    def do_GET(self) -> None:
        name = self.path.removeprefix(RAYJOBS).strip("/")
        if name != "template" and "POST" in self.server.methods and self.server.upcoming:
            state = self.server.upcoming.pop(0)
            if isinstance(state, int):
                return self._answer(state)
            self.server.jobs[name]["status"] = state
        job = self.server.jobs.get(name)
        return self._answer(200 if job else 404, job)

    def do_POST(self) -> None:
        job = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if job["metadata"]["name"] in self.server.jobs:
            return self._answer(409)
        self.server.jobs[job["metadata"]["name"]] = job
        return self._answer(201, job)

    def do_DELETE(self) -> None:
        self._answer(200, self.server.jobs.pop(self.path.rpartition("/")[2]))

    def _answer(self, code: int, body: dict[str, Any] | None = None) -> None:
        self.server.methods.append(self.command)
        assert self.headers["Authorization"] == "Bearer a token"
        self.send_response(code)
        self.end_headers()
        self.wfile.write(json.dumps(body or {}).encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def kubernetes() -> Iterator[Kubernetes]:
    with Kubernetes() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def submit(kubernetes: Kubernetes, folder: Path) -> tuple[int, str]:
    """Run submit.py and return its exit status and what it printed."""
    (folder / "namespace").write_text("nightshift")
    (folder / "token").write_text("a token")
    address = f"http://127.0.0.1:{kubernetes.server_port}"
    env = os.environ | {"SERVICE_ACCOUNT": str(folder), "KUBERNETES_API": address, "POLL_INTERVAL_S": "0.01"}
    command = [sys.executable, str(SUBMIT), "template", "nightly"]
    result = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    return result.returncode, result.stdout + result.stderr


def test_runs_a_copy_of_the_template_and_waits_until_it_ends(kubernetes: Kubernetes, tmp_path: Path) -> None:
    kubernetes.upcoming.insert(0, {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"})
    status, log = submit(kubernetes, tmp_path)
    assert status == 0, log
    assert "Running" in log
    job = kubernetes.jobs["nightly"]
    assert job["spec"] == {"suspend": False, "entrypoint": "python -m jobs.summarize"}
    assert job["metadata"] == {"name": "nightly", "labels": {"app": "nightshift"}}


@pytest.mark.parametrize("state", ["Running", "Retrying"])
def test_does_not_start_a_second_job_while_one_is_running(kubernetes: Kubernetes, tmp_path: Path, state: str) -> None:
    running = TEMPLATE | {"status": {"jobDeploymentStatus": state}}
    kubernetes.jobs["nightly"] = running
    status, log = submit(kubernetes, tmp_path)
    assert (status, kubernetes.jobs["nightly"]) == (1, running)
    assert {*kubernetes.methods} == {"GET"}
    assert f"({state})" in log


@pytest.mark.parametrize("state", ["Complete", "Failed"])
def test_replaces_a_job_that_has_ended(kubernetes: Kubernetes, tmp_path: Path, state: str) -> None:
    kubernetes.jobs["nightly"] = TEMPLATE | {"spec": {"entrypoint": "old"}, "status": {"jobDeploymentStatus": state}}
    status, log = submit(kubernetes, tmp_path)
    assert status == 0, log
    assert kubernetes.jobs["nightly"]["spec"]["entrypoint"] == "python -m jobs.summarize"


def test_a_failed_job_fails_the_pod(kubernetes: Kubernetes, tmp_path: Path) -> None:
    kubernetes.upcoming = [{"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": "exit code 3"}]
    status, log = submit(kubernetes, tmp_path)
    assert status == 1
    assert "FAILED exit code 3" in log


def test_waits_while_the_api_does_not_answer(kubernetes: Kubernetes, tmp_path: Path) -> None:
    kubernetes.upcoming = [503, 500, *kubernetes.upcoming]
    status, log = submit(kubernetes, tmp_path)
    assert status == 0, log
    assert log.count("does not answer") == 2


def test_a_missing_template_is_an_error(kubernetes: Kubernetes, tmp_path: Path) -> None:
    del kubernetes.jobs["template"]
    status, log = submit(kubernetes, tmp_path)
    assert status == 1
    assert "no RayJob template" in log
