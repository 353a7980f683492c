"""Submit a job, show its log, wait until it ends, and end with its exit status.

    python deploy/cluster/submit.py python -m jobs.summarize --input.path … --output.path …

``ray job submit`` ends with 1 for any status but 0, and with 0 if the job was stopped, or if the log broke off and the job
goes on. Ctrl-C and SIGTERM stop the job. The cluster is RAY_API_SERVER_ADDRESS.
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

_LOOK_EVERY_S = 1.0
_STOPPED, _USER_ERROR = 1, 2


def main(words: list[str]) -> int:
    """Of the job; 1 where it has none, since it was stopped or lost."""
    address = os.environ.get("RAY_API_SERVER_ADDRESS")
    if not words or not address:
        print("submit: say which command, and source deploy/cluster/environment.sh before", file=sys.stderr)
        return _USER_ERROR
    folder = Path(__file__).resolve().parents[2]
    environment = yaml.safe_load((folder / "deploy/cluster/runtime_env.yaml").read_text())
    try:
        client = JobSubmissionClient(address)
        job = client.submit_job(entrypoint=shlex.join(words), runtime_env={**environment, "working_dir": str(folder)})
    except (OSError, RuntimeError, RayError) as error:
        print(f"submit: {address} does not take the job: {in_a_line(error)}", file=sys.stderr)
        return _STOPPED
    print(f"submitted {job}; its log again: ray job logs {job}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        asyncio.run(_follow(client, job))
        while not (status := client.get_job_status(job)).is_terminal():
            time.sleep(_LOOK_EVERY_S)
        info = client.get_job_info(job)
    except KeyboardInterrupt:
        client.stop_job(job)
        print(f"submit: told {job} to stop", file=sys.stderr)
        return _STOPPED
    except (OSError, RuntimeError) as error:
        print(f"submit: {address} does not answer any more: {in_a_line(error)}; {job} may go on", file=sys.stderr)
        return _STOPPED
    if info.driver_exit_code is None:
        told = "was stopped" if status == JobStatus.STOPPED else f"was lost: {info.message}"
        print(f"submit: {job} {told}; the same command goes on from there", file=sys.stderr)
        return _STOPPED
    return int(info.driver_exit_code)


async def _follow(client: JobSubmissionClient, job: str) -> None:
    """Show the log until it ends, or the connection does: the job does not hang on that."""
    try:
        async for lines in client.tail_job_logs(job):
            print(lines, end="", flush=True)
    except (OSError, RuntimeError, ClientError) as error:
        print(f"submit: the log breaks off: {in_a_line(error)}", file=sys.stderr)


def in_a_line(error: Exception) -> str:
    """What it says."""
    return " ".join(str(error).split())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
