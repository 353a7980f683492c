"""What the jobs show: text as it is, and where a job stands."""

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

_LINE_EVERY_S = 5.0


class ShowProgress(Protocol):
    """Shows what is being done, how much of the total is done, and something more to say of it."""

    def __call__(self, doing: str, done: int = 0, more: str = "") -> None: ...


class JobConsole(Console):
    """Takes no part of a path, an id or a text for markup or an emoji, breaks no line, and shows no control characters: texts
    and names are strangers', and could steer the terminal.

    Where ``RAY_LOGGING_CONFIG_ENCODING=JSON`` has Ray write its logs so, each line is a JSON object, with Ray's names for time,
    level and message. tags: what else is in it, such as the run's id.
    """

    def __init__(self, **tags: str) -> None:
        self.tags = tags
        self._as_json = os.environ.get("RAY_LOGGING_CONFIG_ENCODING") == "JSON"
        plain = False if self._as_json else None
        super().__init__(highlight=False, soft_wrap=True, markup=False, emoji=False, force_terminal=plain)

    def print(self, *objects: Any, **options: Any) -> None:
        """As rich does; of JSON, a line an event."""
        if not self._as_json:
            return super().print(*objects, **options)
        with self.capture() as shown:
            super().print(*objects)
        for line in filter(None, map(str.strip, shown.get().splitlines())):
            at = datetime.now(UTC).isoformat(timespec="milliseconds")
            event = {"asctime": at, "levelname": "INFO", "message": line, **self.tags}
            self.file.write(json.dumps(event, ensure_ascii=False) + "\n")
        return self.file.flush()

    def render_str(self, text: str, **style: Any) -> Text:
        return super().render_str(printable(text), **style)


def new_console(**tags: str) -> JobConsole:
    """What a job prints to. tags: of its lines, where they are JSON."""
    return JobConsole(**tags)


def progress_line(doing: str, done: int, total: int | None, more: str) -> str:
    """Where a job stands, in a line."""
    return ", ".join(filter(None, [doing, "" if total is None else f"{done:,} of {total:,}", more]))


class _Bars(Progress):
    """A bar, and what more there is to say below it: beside it, a narrow screen would have no room."""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield from (Text(task.fields["more"]) for task in self.tasks if task.fields["more"])


@contextlib.contextmanager
def progress(
    console: Console, doing: str, total: int | None = None, line_every_s: float = _LINE_EVERY_S, says_time_left: bool = False
) -> Iterator[ShowProgress]:
    """A bar to the total, or a spinner where there is none; without a terminal to draw on, a line every few seconds.

    says_time_left: the job knows better than the bar how long it takes, and says so itself.
    """
    text = TextColumn("{task.description}", markup=False)
    columns = (
        (SpinnerColumn(), text, TimeElapsedColumn())
        if total is None
        else (text, BarColumn(), MofNCompleteColumn(), *([] if says_time_left else [TimeRemainingColumn()]))
    )
    last_line = time.monotonic()
    with _Bars(*columns, console=console, transient=total is None, disable=not console.is_terminal) as bar:
        task = bar.add_task(doing, total=total, more="")
        if bar.disable and doing:
            console.print(doing)

        def show(doing: str, done: int = 0, more: str = "") -> None:
            nonlocal last_line
            bar.update(task, description=doing, completed=done, more=more)
            if bar.disable and time.monotonic() - last_line >= line_every_s:
                last_line = time.monotonic()
                console.print(progress_line(doing, done, total, more))

        yield show
