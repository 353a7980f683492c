"""Run a RayJob anew under a fixed name, and wait until it has ended: ``submit.py TEMPLATE NAME``.

TEMPLATE is a RayJob that waits (``suspend: true``). The name is the lock: Kubernetes makes no second object of it, so while
last night's job goes on, tonight's is refused; one that has ended makes room. Exit status 0 if the job succeeded, else 1.
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
LOOK_EVERY_S = float(os.environ.get("LOOK_EVERY_S", "15"))
TIMEOUT_S = 30.0
ENDED = ("Complete", "Failed", "ValidationFailed")
"""Values of a RayJob's ``status.jobDeploymentStatus`` from which it comes to no other."""


def call(method: str, name: str = "", body: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """What the Kubernetes API answers about the RayJob of a name; None if there is none. Raises HTTPError if it refuses."""
    namespace, token = ((ACCOUNT / file).read_text() for file in ("namespace", "token"))  # a token is another after an hour
    request = urllib.request.Request(
        f"{API}/apis/ray.io/v1/namespaces/{namespace}/rayjobs/{name}".rstrip("/"),
        method=method,
        data=json.dumps(body).encode() if body else None,
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=_trust()) as answer:
            return dict(json.load(answer))
    except urllib.error.HTTPError as error:
        if error.code == HTTPStatus.NOT_FOUND:
            return None
        raise


def patiently(name: str) -> dict[str, Any] | None:
    """As ``call("GET", name)``, until the API answers: hours of a run do not hang on one answer."""
    while True:
        try:
            return call("GET", name)
        except OSError as error:
            print(f"the Kubernetes API does not answer: {error}", flush=True)
            time.sleep(LOOK_EVERY_S)


def state(job: dict[str, Any]) -> str:
    """How far KubeRay has come with a job."""
    return str(job.get("status", {}).get("jobDeploymentStatus", "New"))


def main(template: str, name: str) -> int:
    """Make room, start the job, wait; the exit status."""
    job = call("GET", template)
    if job is None:
        print(f"there is no RayJob {template} to run")
        return 1
    if (last := call("GET", name)) is not None:
        if state(last) not in ENDED:
            print(f"RayJob {name} still goes on ({state(last)}): nothing is started beside it")
            return 1
        call("DELETE", name)
        while patiently(name) is not None:
            time.sleep(LOOK_EVERY_S)
    kind = {field: job[field] for field in ("apiVersion", "kind")}
    labels = job["metadata"].get("labels", {})
    call("POST", body={**kind, "metadata": {"name": name, "labels": labels}, "spec": {**job["spec"], "suspend": False}})
    said = ""
    while (running := patiently(name)) is not None:
        if state(running) != said:
            said = state(running)
            print(f"RayJob {name}: {said}", flush=True)
        if said in ENDED:
            status = running["status"]
            print(f"RayJob {name}: {status.get('jobStatus', '')} {status.get('message', '')}".rstrip())
            return 0 if status.get("jobStatus") == "SUCCEEDED" else 1
        time.sleep(LOOK_EVERY_S)
    print(f"RayJob {name} was removed before it ended")
    return 1


def _trust() -> ssl.SSLContext:
    authority = ACCOUNT / "ca.crt"
    return ssl.create_default_context(cafile=str(authority) if authority.exists() else None)


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]))
    except urllib.error.HTTPError as refusal:
        sys.exit(f"the Kubernetes API refuses: {refusal.code} {refusal.reason}")
