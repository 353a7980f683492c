"""Connecting to Ray, waiting for its resources, and the errors of its tasks."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from ray.exceptions import RayError

from pipeline import cluster
from pipeline.errors import EXIT_OK, EXIT_STOPPED, EXIT_USER_ERROR, Stopped, UserError


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://127.0.0.1:8265"])
def test_missing_cluster_is_named(address: str) -> None:
    code = "from pipeline import cluster, errors; errors.exit_on_user_error('job', lambda: cluster.connect() or 0)"
    environment = {**os.environ, "RAY_ADDRESS": address}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_USER_ERROR, done.stderr
    assert address in done.stderr
    assert "RAY_ADDRESS" in done.stderr


TASK_ERROR = "ray::MapBatches()\n  File 'stages.py', line 7\n{}\n\nThe above exception was the direct cause of the following"


@pytest.mark.parametrize(
    ("text", "error_type", "message"),
    [
        (TASK_ERROR.format("pipeline.errors.UserError: set another"), UserError, "set another"),
        (TASK_ERROR.format("OSError: [Errno 28] No space left"), Stopped, "OSError: [Errno 28] No space left"),
        ("The node died.\n\tip: 10.0.0.1", Stopped, "ip: 10.0.0.1"),
        ("", Stopped, "RayError"),
    ],
)
def test_error_of_a_task_becomes_its_cause(text: str, error_type: type[Exception], message: str) -> None:
    error = cluster.to_user_error(RayError(text))
    assert type(error) is error_type
    assert str(error).strip() == message


def test_missing_capacity_is_named() -> None:
    cluster.connect()
    cluster.wait_for_capacity({"CPU": 0.5}, 2, 0.25, 0)
    for request, actors, message in (
        ({"CPU": 1.0, "quantum": 3.0}, 2, "2 actors of 1 CPU and 3 quantum each.* for 0 of them.* --resources.actors"),
        ({"CPU": 0.5}, 7000, r"7000 actors of 0.5 CPU each.* for \d+ of them"),
        ({"CPU": 7000.0}, 1, "1 actors of 7000 CPU"),
    ):
        started = time.monotonic()
        with pytest.raises(UserError, match=message):
            cluster.wait_for_capacity(request, actors, 0.25, 0.6)
        assert 0.6 <= time.monotonic() - started < 5


def test_scarcest_resource_limits_the_capacity() -> None:
    node = {"CPU": 4.0, "GPU": 1.0, "accelerator_type:T4": 1.0}
    assert cluster.capacity(node, {"CPU": 0.5, "GPU": 0.25}) == 4
    assert cluster.capacity(node, {"CPU": 3.0}) == 1
    assert cluster.capacity(node, {"GPU": 0.3, "accelerator_type:T4": 0.001}) == 3
    assert cluster.capacity(node, {"CPU": 0.5, "quantum": 1.0}) == 0


def test_chunks_end_at_the_weight_or_the_number_of_items() -> None:
    assert list(cluster.chunk_by_weight([3, 4, 5, 1], lambda weight: weight, 6)) == [[3, 4], [5, 1]]
    assert list(cluster.chunk_by_weight([9, 1], lambda weight: weight, 6)) == [[9], [1]]
    assert list(cluster.chunk_by_weight([1] * 5, lambda weight: weight, 99, max_items=2)) == [[1, 1], [1, 1], [1]]


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_cluster_of_a_job_requires_its_token() -> None:
    """Ray runs any code that it receives, and listens on all interfaces."""
    connect = "from pipeline import cluster; cluster.connect(); import ray; "
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    code = connect + "print(ray.get_runtime_context().gcs_address, flush=True); input()"
    job = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert job.stdout
        address = job.stdout.readline().strip()
        for auth, status in (
            ({"RAY_AUTH_MODE": "disabled"}, EXIT_STOPPED),
            ({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, EXIT_STOPPED),
            ({"RAY_AUTH_MODE": "token"}, EXIT_OK),  # reads the token file, like the job
        ):
            command = [sys.executable, "-c", connect + "print(ray.cluster_resources())"]
            done = subprocess.run(command, env={**environment, **auth, "RAY_ADDRESS": address}, capture_output=True)
            assert done.returncode == status, (auth, done.stderr)
            assert status == EXIT_OK or b"token is missing or incorrect" in done.stderr
    finally:
        job.communicate("\n", timeout=60)
