"""Run a copy of a RayJob under a fixed name and wait until it ends: ``submit.py TEMPLATE NAME``.

TEMPLATE is a suspended RayJob (``suspend: true``). NAME serves as a lock: Kubernetes creates no second object of the same name,
so no copy starts while the previous one is running. A copy that has ended is deleted first. The exit status is 0 if the job
succeeded, otherwise 1.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from pathlib import Path
from typing import Any

ACCOUNT = Path(os.environ.get("SERVICE_ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
API = os.environ.get("KUBERNETES_API", "https://kubernetes.default.svc")
POLL_INTERVAL_S = float(os.environ.get("POLL_INTERVAL_S", "15"))
TIMEOUT_S = 30.0
ENDED = ("Complete", "Failed", "ValidationFailed")
"""Final values of a RayJob's ``status.jobDeploymentStatus``."""


def call(method: str, name: str = "", body: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """Call the Kubernetes API for a RayJob and return the answer; None if there is no such job. Raises HTTPError."""
    # Read each time: the token changes every hour.
    namespace, token = ((ACCOUNT / file).read_text() for file in ("namespace", "token"))
    request = urllib.request.Request(
        f"{API}/apis/ray.io/v1/namespaces/{namespace}/rayjobs/{name}".rstrip("/"),
        method=method,
        data=json.dumps(body).encode() if body else None,
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=_ssl_context()) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.NOT_FOUND:
            return None
        raise


def get_with_retry(name: str) -> dict[str, Any] | None:
    """Get a RayJob; wait while the API does not answer, so that a short outage does not fail a run of hours."""
    while True:
        try:
            return call("GET", name)
        except OSError as error:
            print(f"the Kubernetes API does not answer: {error}", flush=True)
            time.sleep(POLL_INTERVAL_S)


def state(job: dict[str, Any]) -> str:
    """Return a job's deployment status."""
    return str(job.get("status", {}).get("jobDeploymentStatus", "New"))


def main(template: str, name: str) -> int:
    """Delete the previous copy, start a new one, wait until it ends, and return the exit status."""
    job = call("GET", template)
    if job is None:
        print(f"there is no RayJob {template}; apply components/jobs")
        return 1
    if (last := call("GET", name)) is not None:
        if state(last) not in ENDED:
            print(f"RayJob {name} is still running ({state(last)}); no other one is started")
            return 1
        call("DELETE", name)
        while get_with_retry(name) is not None:
            time.sleep(POLL_INTERVAL_S)
    metadata = {"name": name, "labels": job["metadata"].get("labels", {})}
    spec = {**job["spec"], "suspend": False}
    call("POST", body={"apiVersion": job["apiVersion"], "kind": job["kind"], "metadata": metadata, "spec": spec})
    printed = ""
    while (copy := get_with_retry(name)) is not None:
        if state(copy) != printed:
            printed = state(copy)
            print(f"RayJob {name}: {printed}", flush=True)
        if printed in ENDED:
            status = copy["status"]
            print(f"RayJob {name}: {status.get('jobStatus', '')} {status.get('message', '')}".rstrip())
            return 0 if status.get("jobStatus") == "SUCCEEDED" else 1
        time.sleep(POLL_INTERVAL_S)
    print(f"RayJob {name} was deleted before it ended")
    return 1


def _ssl_context() -> ssl.SSLContext:
    authority = ACCOUNT / "ca.crt"
    return ssl.create_default_context(cafile=str(authority) if authority.exists() else None)


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except urllib.error.HTTPError as error:
        sys.exit(f"the Kubernetes API refused the request: {error.code} {error.reason}")
