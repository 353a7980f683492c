"""Which Ray a job joins, and how the errors of its tasks are told."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from ray.exceptions import RayError

from pipeline import cluster
from pipeline.errors import Stopped, UserError


@pytest.mark.parametrize("address", ["127.0.0.1:1", "http://127.0.0.1:8265"])
def test_a_cluster_that_is_not_there_is_named(address: str) -> None:
    code = "from pipeline import cluster, errors; errors.exit_on_user_error('job', lambda: cluster.connect() or 0)"
    environment = {**os.environ, "RAY_ADDRESS": address}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 2, ran.stderr
    assert f"job: cannot join a Ray cluster at {address}: " in ran.stderr
    assert "set RAY_ADDRESS" in ran.stderr


RAISED = "ray::MapBatches()\n  File 'stages.py', line 7\n{}\n\nThe above exception was the direct cause of the following"


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        (RAISED.format("pipeline.errors.UserError: set another"), UserError, "set another"),
        (RAISED.format("OSError: [Errno 28] No space left"), Stopped, "OSError: [Errno 28] No space left"),
        ("The node died.\n\tip: 10.0.0.1", Stopped, "ip: 10.0.0.1"),
        ("", Stopped, "RayError"),
    ],
)
def test_the_error_of_a_task_is_told_as_what_began_it(text: str, kind: type[Exception], message: str) -> None:
    error = cluster.to_user_error(RayError(text))
    assert type(error) is kind
    assert str(error).strip() == message


def test_room_that_the_cluster_has_not_got_is_named() -> None:
    cluster.connect()
    cluster.wait_for_capacity({"CPU": 0.5}, 2, 0.25, 0)
    for each, number, told in (
        ({"CPU": 1.0, "quantum": 3.0}, 2, "2 actors of 1 CPU and 3 quantum each, .* for 0 of them, .* --resources.actors"),
        ({"CPU": 0.5}, 7000, r"7000 actors of 0.5 CPU each, .* for \d+ of them"),
        ({"CPU": 7000.0}, 1, "1 actors of 7000 CPU"),
    ):
        started = time.monotonic()
        with pytest.raises(UserError, match=told):
            cluster.wait_for_capacity(each, number, 0.25, 1)
        assert 1 <= time.monotonic() - started < 5


def test_as_many_find_room_as_the_scarcest_resource_allows() -> None:
    node = {"CPU": 4.0, "GPU": 1.0, "accelerator_type:T4": 1.0}
    assert cluster.capacity(node, {"CPU": 0.5, "GPU": 0.25}) == 4
    assert cluster.capacity(node, {"CPU": 3.0}) == 1
    assert cluster.capacity(node, {"GPU": 0.3, "accelerator_type:T4": 0.001}) == 3
    assert cluster.capacity(node, {"CPU": 0.5, "quantum": 1.0}) == 0


@pytest.mark.faults
@pytest.mark.timeout(300)
def test_a_job_lets_nobody_in_without_its_token() -> None:
    """Ray runs what it is sent, and listens on all interfaces."""
    begin = "from pipeline import cluster; cluster.connect(); import ray; "
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    code = begin + "print(ray.get_runtime_context().gcs_address, flush=True); input()"
    job = subprocess.Popen([sys.executable, "-c", code], env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert job.stdout
        address = job.stdout.readline().strip()
        for token, status in ((None, 1), ("0" * 64, 1), ("its own", 0)):
            given = {"RAY_AUTH_MODE": "disabled"} if token is None else {"RAY_AUTH_MODE": "token"}
            given |= {"RAY_AUTH_TOKEN": token} if token and token != "its own" else {}
            code = begin + "print(ray.cluster_resources())"
            ran = subprocess.run(
                [sys.executable, "-c", code], env={**own, **given, "RAY_ADDRESS": address}, capture_output=True
            )
            assert ran.returncode == status, (token, ran.stderr)
            assert status == 0 or b"token is missing or incorrect" in ran.stderr
    finally:
        job.communicate("\n", timeout=60)
