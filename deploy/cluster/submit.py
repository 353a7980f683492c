"""Submit a job, print its log, wait until it ends, and exit with its status.

    python deploy/cluster/submit.py python -m jobs.summarize --input.path … --output.path …

``ray job submit`` exits with 1 for every status other than 0, and with 0 if the job was stopped or if the connection to the log
broke. Ctrl-C and SIGTERM stop the job. RAY_API_SERVER_ADDRESS selects the cluster.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import yaml
from aiohttp import ClientError
from ray.exceptions import RayError
from ray.job_submission import JobStatus, JobSubmissionClient

_POLL_INTERVAL_S = 1.0
_STOPPED, _USER_ERROR = 1, 2


def main(command: list[str]) -> int:
    """Submit the command and return its exit status; 1 if it has none because it was stopped or lost."""
    address = os.environ.get("RAY_API_SERVER_ADDRESS")
    if not command or not address:
        print("submit: the command or RAY_API_SERVER_ADDRESS is missing; source deploy/cluster/environment.sh", file=sys.stderr)
        return _USER_ERROR
    folder = Path(__file__).resolve().parents[2]
    environment = yaml.safe_load((folder / "deploy/cluster/runtime_env.yaml").read_text())
    try:
        client = JobSubmissionClient(address)
        job = client.submit_job(entrypoint=shlex.join(command), runtime_env={**environment, "working_dir": str(folder)})
    except (OSError, RuntimeError, RayError) as error:
        print(f"submit: cannot submit the job to {address}: {_one_line(error)}", file=sys.stderr)
        return _STOPPED
    print(f"submitted {job}; to show its log again: ray job logs {job}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        asyncio.run(_follow(client, job))
        while not (status := client.get_job_status(job)).is_terminal():
            time.sleep(_POLL_INTERVAL_S)
        info = client.get_job_info(job)
    except KeyboardInterrupt:
        client.stop_job(job)
        print(f"submit: stopping {job}", file=sys.stderr)
        return _STOPPED
    except (OSError, RuntimeError) as error:
        print(f"submit: {address} does not answer: {_one_line(error)}; {job} may still be running", file=sys.stderr)
        return _STOPPED
    if info.driver_exit_code is None:
        reason = "was stopped" if status == JobStatus.STOPPED else f"was lost: {info.message}"
        print(f"submit: {job} {reason}; submit the same command again to resume", file=sys.stderr)
        return _STOPPED
    return int(info.driver_exit_code)


async def _follow(client: JobSubmissionClient, job: str) -> None:
    """Print the log until it ends or the connection breaks. The job does not depend on it."""
    try:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)
    except (OSError, RuntimeError, ClientError) as error:
        print(f"submit: the connection to the log broke: {_one_line(error)}", file=sys.stderr)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
