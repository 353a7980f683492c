"""The night's submitter, as its pod runs it, beside a server that answers for RayJobs as the Kubernetes API does."""

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
    """RayJobs by name. coming: the states that a new job goes through, one each time it is asked for; a number: no answer."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.jobs: dict[str, dict[str, Any]] = {"template": TEMPLATE}
        self.coming: list[dict[str, str] | int] = [{"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}]
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Kubernetes

    def do_GET(self) -> None:
        name = self.path.removeprefix(RAYJOBS).strip("/")
        if name != "template" and "POST" in self.server.asked and self.server.coming:
            state = self.server.coming.pop(0)
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
        self.server.asked.append(self.command)
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
    """Exit status and what it said."""
    (folder / "namespace").write_text("nightshift")
    (folder / "token").write_text("a token")
    address = f"http://127.0.0.1:{kubernetes.server_port}"
    env = os.environ | {"SERVICE_ACCOUNT": str(folder), "KUBERNETES_API": address, "LOOK_EVERY_S": "0.01"}
    command = [sys.executable, str(SUBMIT), "template", "nightly"]
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    return ended.returncode, ended.stdout + ended.stderr


def test_a_night_runs_the_template_and_waits_until_it_has_ended(kubernetes: Kubernetes, tmp_path: Path) -> None:
    kubernetes.coming.insert(0, {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"})
    status, said = submit(kubernetes, tmp_path)
    assert status == 0, said
    assert "Running" in said
    job = kubernetes.jobs["nightly"]
    assert job["spec"] == {"suspend": False, "entrypoint": "python -m jobs.summarize"}
    assert job["metadata"] == {"name": "nightly", "labels": {"app": "nightshift"}}


@pytest.mark.parametrize("state", ["Running", "Retrying"])
def test_nothing_is_started_beside_a_job_that_goes_on(kubernetes: Kubernetes, tmp_path: Path, state: str) -> None:
    last = TEMPLATE | {"status": {"jobDeploymentStatus": state}}
    kubernetes.jobs["nightly"] = last
    status, said = submit(kubernetes, tmp_path)
    assert (status, kubernetes.jobs["nightly"]) == (1, last)
    assert {*kubernetes.asked} == {"GET"}
    assert f"still goes on ({state})" in said


@pytest.mark.parametrize("state", ["Complete", "Failed"])
def test_a_job_that_has_ended_makes_room(kubernetes: Kubernetes, tmp_path: Path, state: str) -> None:
    kubernetes.jobs["nightly"] = TEMPLATE | {"spec": {"entrypoint": "old"}, "status": {"jobDeploymentStatus": state}}
    status, said = submit(kubernetes, tmp_path)
    assert status == 0, said
    assert kubernetes.jobs["nightly"]["spec"]["entrypoint"] == "python -m jobs.summarize"


def test_a_failed_night_is_a_failed_pod(kubernetes: Kubernetes, tmp_path: Path) -> None:
    kubernetes.coming = [{"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": "exit code 3"}]
    status, said = submit(kubernetes, tmp_path)
    assert status == 1
    assert "FAILED exit code 3" in said


def test_an_api_that_does_not_answer_for_a_while_ends_no_night(kubernetes: Kubernetes, tmp_path: Path) -> None:
    kubernetes.coming = [503, 500, *kubernetes.coming]
    status, said = submit(kubernetes, tmp_path)
    assert status == 0, said
    assert said.count("does not answer") == 2


def test_without_a_template_it_says_so(kubernetes: Kubernetes, tmp_path: Path) -> None:
    del kubernetes.jobs["template"]
    status, said = submit(kubernetes, tmp_path)
    assert (status, said) == (1, "there is no RayJob template to run\n")
