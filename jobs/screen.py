"""What the jobs show: text as it is, and where a job stands."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_LINE_EVERY_S = 5.0


class Show(Protocol):
    """Shows what is being done, how much of the total is done, and something more to say of it."""

    def __call__(self, doing: str, done: int = 0, more: str = "") -> None: ...


def new_console() -> Console:
    """A console that takes no part of a path, an id or a text for markup or an emoji, and breaks no line."""
    return Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


@contextlib.contextmanager
def progress(console: Console, doing: str, total: int | None = None) -> Iterator[Show]:
    """A bar to the total, or a spinner where there is none; without a terminal to draw on, a line every few seconds."""
    text, more = TextColumn("{task.description}", markup=False), TextColumn("{task.fields[more]}", markup=False)
    columns = (
        (SpinnerColumn(), text, TimeElapsedColumn())
        if total is None
        else (text, BarColumn(), MofNCompleteColumn(), more, TimeRemainingColumn())
    )
    last_line = time.monotonic()
    with Progress(*columns, console=console, transient=total is None, disable=not console.is_terminal) as bar:
        task = bar.add_task(doing, total=total, more="")
        if bar.disable and doing:
            console.print(doing)

        def show(doing: str, done: int = 0, more: str = "") -> None:
            nonlocal last_line
            bar.update(task, description=doing, completed=done, more=more)
            if bar.disable and time.monotonic() - last_line >= _LINE_EVERY_S:
                last_line = time.monotonic()
                counted = [] if total is None else [f"{done:,} of {total:,}"]
                console.print(", ".join([doing, *counted, *filter(None, [more])]))

        yield show
