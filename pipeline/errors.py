"""Errors with a message for the user, and the exit statuses of the jobs."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

EXIT_OK = 0
EXIT_STOPPED = 1  # also Python's own status for an unexpected exception
EXIT_NOT_VERIFIED = 1
EXIT_USER_ERROR = 2
EXIT_TOO_MANY_REJECTS = 3
EXIT_INTERRUPTED = 130

_CONTROL_CHARACTERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_S3_ERRORS = {
    "NO_SUCH_BUCKET": "the bucket does not exist",
    "ACCESS_DENIED|SIGNATURE_DOES_NOT_MATCH|INVALID_ACCESS_KEY_ID|INVALID_SIGNATURE|UNRECOGNIZED_CLIENT|EXPIRED_TOKEN|"
    "REQUEST_EXPIRED|MISSING_AUTHENTICATION_TOKEN": "the server refuses the credentials, which come from the environment, "
    "a profile or the machine's role",
    "NETWORK_CONNECTION": "the server does not answer",
}
"""Explanations of the error codes in pyarrow's messages."""


class UserError(Exception):
    """An error that the user can fix. The message says what is wrong, where, and what to do."""


class Stopped(Exception):
    """A job failed because of the cluster or a bug. The message says what is known and how to resume."""


def printable(text: str) -> str:
    """Replace control characters except tab and line feed by U+FFFD, so that input text cannot control the terminal."""
    return _CONTROL_CHARACTERS.sub("\N{REPLACEMENT CHARACTER}", text)


def exit_status(error: BaseException) -> int:
    if isinstance(error, UserError):
        return EXIT_USER_ERROR
    return EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else EXIT_STOPPED


def exit_on_user_error(job: str, main: Callable[[], int]) -> NoReturn:
    """Run a job's ``main`` and exit with its status; print a UserError or Stopped on stderr, without a traceback.

    SIGTERM, which ``ray job stop`` sends, is handled like Ctrl-C: context managers exit, so the lease is released.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(signal.SIGTERM))  # Ray does the same, but only once a job connects
    try:
        status = main()
    except (UserError, Stopped, KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, UserError):
            message = str(error)
        elif isinstance(error, Stopped):
            message = f"stopped: {error}"
        elif isinstance(error, KeyboardInterrupt):
            message = "interrupted"
        elif error.code == signal.SIGTERM:
            message = "stopped by SIGTERM"
        else:
            raise
        print(printable(f"{job}: {message}"), file=sys.stderr)
        status = exit_status(error)
    sys.exit(status)


def describe_error(error: Exception) -> str:
    """Return an error's message on one line: only the reason for a system error, with an explanation for an S3 error."""
    if isinstance(error, OSError) and error.errno and error.errno > 0:  # errors of name resolution have numbers below 0
        return os.strerror(error.errno)
    message = " ".join(str(error).split()) or type(error).__name__
    code = re.search(r"AWS Error ([A-Z_]+)", message)
    explanation = next((text for codes, text in _S3_ERRORS.items() if code and code[1] in codes.split("|")), None)
    return f"{explanation} ({message})" if explanation else message
