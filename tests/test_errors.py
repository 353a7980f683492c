"""Exit statuses and error messages as the shell sees them."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.errors import (
    EXIT_INTERRUPTED,
    EXIT_STOPPED,
    EXIT_USER_ERROR,
    Stopped,
    UserError,
    describe_error,
    exit_on_user_error,
)


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("no column 'text'"), EXIT_USER_ERROR, "summarize: no column 'text'\n"),
        (
            UserError("title \x1b]0;x\x07"),
            EXIT_USER_ERROR,
            "summarize: title \N{REPLACEMENT CHARACTER}]0;x\N{REPLACEMENT CHARACTER}\n",
        ),
        (Stopped("a worker was lost"), EXIT_STOPPED, "summarize: stopped: a worker was lost\n"),
        (KeyboardInterrupt(), EXIT_INTERRUPTED, "summarize: interrupted\n"),
    ],
)
def test_expected_error_is_one_line_with_its_status(
    error: BaseException, status: int, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def main() -> int:
        raise error

    with pytest.raises(SystemExit) as caught:
        exit_on_user_error("summarize", main)
    assert caught.value.code == status
    assert capsys.readouterr().err == line


def test_return_value_is_the_exit_status() -> None:
    with pytest.raises(SystemExit) as caught:
        exit_on_user_error("summarize", lambda: 3)
    assert caught.value.code == 3


def test_unexpected_error_keeps_its_traceback() -> None:
    def main() -> int:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        exit_on_user_error("train", main)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "[Errno 28] error writing bytes to file"), "No space left on device"),
        (OSError("two\nlines"), "two lines"),
        (ValueError(), "ValueError"),
        (OSError("AWS Error NO_SUCH_BUCKET during HeadBucket"), "the bucket does not exist (AWS Error NO_SUCH_BUCKET "),
        (OSError("AWS Error ACCESS_DENIED during PutObject"), "the server refuses the credentials"),
    ],
)
def test_errors_are_described_on_one_line(error: Exception, message: str) -> None:
    description = describe_error(error)
    assert description.startswith(message)
    assert "\n" not in description


def test_sigterm_exits_context_managers(tmp_path: Path) -> None:
    code = f"""
import time
from pathlib import Path
from pipeline.errors import exit_on_user_error

def main() -> int:
    lock = Path({str(tmp_path / "lock")!r})
    lock.touch()
    try:
        time.sleep(60)
    finally:
        lock.unlink()

exit_on_user_error("summarize", main)
"""
    job = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "lock").exists():
        assert job.poll() is None
    job.terminate()
    _, message = job.communicate(timeout=30)
    assert job.returncode == EXIT_STOPPED
    assert message == "summarize: stopped by SIGTERM\n"
    assert not (tmp_path / "lock").exists()
