"""Console output of the jobs: plain text, progress, and JSON lines for log collectors."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Protocol

from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from pipeline.errors import printable


class ShowProgress(Protocol):
    """Updates a progress display: the current task, how much of the total is done, and details."""

    def __call__(self, task: str, done: int = 0, details: str = "") -> None: ...


class JobConsole(Console):
    """Console that prints text without markup, emoji codes, line breaks or control characters, since texts are untrusted.

    If ``RAY_LOGGING_CONFIG_ENCODING=JSON`` is set, each line is a JSON object with Ray's keys for time, level and message.

    Attributes:
        tags: further keys of the JSON objects, such as the run id.
    """

    def __init__(self, **tags: str) -> None:
        self.tags = tags
        self._as_json = os.environ.get("RAY_LOGGING_CONFIG_ENCODING") == "JSON"
        force_terminal = False if self._as_json else None
        super().__init__(highlight=False, soft_wrap=True, markup=False, emoji=False, force_terminal=force_terminal)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print objects, or as JSON one object per line."""
        if not self._as_json:
            return super().print(*objects, **options)
        with self.capture() as captured:
            super().print(*objects)
        for line in filter(None, map(str.strip, captured.get().splitlines())):
            timestamp = datetime.now(UTC).isoformat(timespec="milliseconds")
            event = {"asctime": timestamp, "levelname": "INFO", "message": line, **self.tags}
            self.file.write(json.dumps(event, ensure_ascii=False) + "\n")
        return self.file.flush()

    def render_str(self, text: str, **style: Any) -> Text:
        return super().render_str(printable(text), **style)


def new_console(**tags: str) -> JobConsole:
    return JobConsole(**tags)


def progress_line(task: str, done: int, total: int | None, details: str) -> str:
    return ", ".join(filter(None, [task, "" if total is None else f"{done:,} of {total:,}", details]))


class _ProgressWithDetails(Progress):
    """Progress display with the details on a line below, since a narrow terminal has no space next to the bar."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (Text(task.fields["details"]) for task in self.tasks if task.fields["details"])


@contextlib.contextmanager
def progress(
    console: Console, task: str, total: int | None = None, *, line_every_s: float = 5.0, show_time_left: bool = True
) -> Iterator[ShowProgress]:
    """Show a progress bar, or a spinner if there is no total; yield a function that updates it.

    Without a terminal, print a line when the task changes, and otherwise every ``line_every_s`` seconds.

    Args:
        show_time_left: show the bar's own estimate; False if the details have a better one.
    """
    columns = [SpinnerColumn(), TextColumn("{task.description}", markup=False)]
    if total is not None:
        columns += [BarColumn(), MofNCompleteColumn()]
    columns += [TimeRemainingColumn() if total is not None and show_time_left else TimeElapsedColumn()]
    with _ProgressWithDetails(*columns, console=console, transient=total is None, disable=not console.is_terminal) as display:
        task_id = display.add_task(task, total=total, details="")
        last_task, last_line_s = task, time.monotonic()
        if display.disable and task:
            console.print(task)

        def show(task: str, done: int = 0, details: str = "") -> None:
            nonlocal last_task, last_line_s
            display.update(task_id, description=task, completed=done, details=details)
            if display.disable and (task != last_task or time.monotonic() - last_line_s >= line_every_s):
                last_task, last_line_s = task, time.monotonic()
                console.print(progress_line(task, done, total, details))

        yield show
