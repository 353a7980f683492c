"""Run a job as a user does: in this process, or as a command."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from typing import NamedTuple

import pytest

from pipeline.errors import exit_on_user_error


class JobResult(NamedTuple):
    """Exit status, stdout and stderr of a job."""

    status: int
    out: str
    err: str

    @property
    def error(self) -> str:
        """The error message of a job that the user must fix."""
        assert self.status == 2, self.err
        assert self.err.count("\n") == 1, self.err
        return self.err


RunJob = Callable[..., JobResult]


def job_runner(job: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunJob:
    """Return a function that runs a job in this process with the options that it is given."""
    main = import_module(f"jobs.{job}").main

    def run(*options: object) -> JobResult:
        monkeypatch.setattr(sys, "argv", [job, *map(str, options)])
        with pytest.raises(SystemExit) as exit_:
            exit_on_user_error(job, main)
        assert isinstance(exit_.value.code, int)
        return JobResult(exit_.value.code, *capsys.readouterr())

    return run


def job_command(job: str, *options: object) -> list[str]:
    """Return the command line of a job."""
    return [sys.executable, "-m", f"jobs.{job}", *map(str, options)]


def run_command(job: str, *options: object) -> JobResult:
    """Run a job as a command, with a Ray cluster of its own."""
    environment = {**os.environ, "RAY_ADDRESS": ""}
    done = subprocess.run(job_command(job, *options), env=environment, capture_output=True, text=True, check=False)
    return JobResult(done.returncode, done.stdout, done.stderr)
