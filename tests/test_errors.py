"""What a user's mistake looks like from the shell."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import Stopped, UserError, exit_on_user_error


def test_a_user_error_is_one_line_and_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise UserError("column 'text' is not there")

    with pytest.raises(SystemExit) as done:
        exit_on_user_error("summarize", main)
    assert done.value.code == 2
    assert capsys.readouterr().err == "summarize: column 'text' is not there\n"


def test_a_job_that_stopped_says_so_with_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise Stopped("a worker was lost")

    with pytest.raises(SystemExit) as done:
        exit_on_user_error("summarize", main)
    assert done.value.code == 1
    assert capsys.readouterr().err == "summarize: stopped: a worker was lost\n"


def test_the_status_of_the_job_is_the_exit_status() -> None:
    with pytest.raises(SystemExit) as done:
        exit_on_user_error("summarize", lambda: 3)
    assert done.value.code == 3


def test_an_interrupt_is_said_without_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as done:
        exit_on_user_error("train", main)
    assert done.value.code == 130
    assert capsys.readouterr().err == "train: interrupted\n"


def test_our_own_faults_keep_their_traceback() -> None:
    def main() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exit_on_user_error("train", main)


def test_a_job_that_is_told_to_end_gives_back_what_it_holds(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from pipeline.errors import exit_on_user_error

def main() -> int:
    held = Path({str(tmp_path / "held")!r})
    held.touch()
    try:
        time.sleep(60)
    finally:
        held.unlink()

exit_on_user_error("summarize", main)
"""
    job = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "held").exists():
        assert job.poll() is None
    job.terminate()
    _, told = job.communicate(timeout=30)
    assert job.returncode == 1
    assert told == "summarize: stopped: it was told to end (SIGTERM)\n"
    assert not (tmp_path / "held").exists()
