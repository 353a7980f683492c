"""Errors that are told in words: what a user can mend (exit status 2), and what stopped a job that may go on (1)."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

EXIT_STOPPED, EXIT_USER_ERROR, EXIT_TOO_MANY_REJECTS, EXIT_INTERRUPTED = 1, 2, 3, 130

_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class UserError(Exception):
    """Something the user must change. The message says what, where, and what to do."""


class Stopped(Exception):
    """The cluster, or our own code, failed a job midway. The message says what is known of it, and how to go on."""


def printable(text: str) -> str:
    """A stranger's text with U+FFFD for each control character but tab and line feed: none of them steers a terminal."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def exit_status(error: BaseException) -> int:
    """What a job exits with that ends by an error; of our own faults it is Python's, 1."""
    if isinstance(error, UserError):
        return EXIT_USER_ERROR
    return EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else EXIT_STOPPED


def exit_on_user_error(job: str, main: Callable[[], int]) -> NoReturn:
    """Run a job's ``main`` and exit with its status; a UserError or Stopped is told on stderr, without a traceback.

    SIGTERM, which ``ray job stop`` sends, unwinds it like Ctrl-C: what it holds, such as a lease, is given back.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(signal.SIGTERM))  # as Ray does, from when a job joins it
    try:
        status = main()
    except (UserError, Stopped, KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, UserError):
            told = str(error)
        elif isinstance(error, Stopped):
            told = f"stopped: {error}"
        elif isinstance(error, KeyboardInterrupt):
            told = "interrupted"
        elif error.code == signal.SIGTERM:
            told = "stopped: it was told to end (SIGTERM)"
        else:
            raise
        print(printable(f"{job}: {told}"), file=sys.stderr)
        status = exit_status(error)
    sys.exit(status)


_S3_ERRORS = {
    "NO_SUCH_BUCKET": "there is no such bucket",
    "ACCESS_DENIED|SIGNATURE_DOES_NOT_MATCH|INVALID_ACCESS_KEY_ID|INVALID_SIGNATURE|UNRECOGNIZED_CLIENT|EXPIRED_TOKEN|"
    "REQUEST_EXPIRED|MISSING_AUTHENTICATION_TOKEN": "the server does not grant this to the credentials that it was shown, "
    "those of the environment, of a profile or of the machine's role",
    "NETWORK_CONNECTION": "the server does not answer",
}


def describe_error(error: Exception) -> str:
    """An error's own words on one line; for the system's errors just what went wrong."""
    if isinstance(error, OSError) and error.errno and error.errno > 0:  # name resolution counts its own below 0
        return os.strerror(error.errno)
    told = " ".join(str(error).split()) or type(error).__name__
    said = re.search(r"AWS Error ([A-Z_]+)", told)
    known = next((words for codes, words in _S3_ERRORS.items() if said and said[1] in codes.split("|")), None)
    return f"{known} ({told})" if known else told
