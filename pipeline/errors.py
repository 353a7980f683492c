"""Errors that a user can mend: one clear line and exit status 2, never a traceback."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn

EXIT_USER_ERROR = 2


class UserError(Exception):
    """Something the user must change. The message says what, where, and what to do."""


def exit_on_user_error(job: str, main: Callable[[], int]) -> NoReturn:
    """Run a job's ``main`` and exit with its status; a UserError becomes one line on stderr and status 2."""
    try:
        status = main()
    except UserError as error:
        print(f"{job}: {error}", file=sys.stderr)
        status = EXIT_USER_ERROR
    except KeyboardInterrupt:
        print(f"{job}: interrupted", file=sys.stderr)
        status = 130
    sys.exit(status)
