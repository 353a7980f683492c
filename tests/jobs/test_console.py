"""Console output for people and for log collectors."""

from __future__ import annotations

import io
import json
import time
from datetime import datetime

import pytest
from rich.console import Console
from rich.text import Text

from jobs.console import new_console, progress

DETAILS = "310 documents/s (290 in the last minute), 0:01:20 left, 2 actors"


def test_each_line_is_a_json_object(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RAY_LOGGING_CONFIG_ENCODING", "JSON")
    console = new_console(job="summarize")
    console.print('Überschrift: [bold] "quoted"')
    console.tags["run"] = "r1"
    console.print("\nfirst\n  second " + "word " * 100, style="bold")
    console.print(Text.assemble("an ", ("example", "bold")))
    with progress(console, "decoding", 10, line_every_s=0) as show:
        show("decoding", 3, "2 documents/s")
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["message"] for event in events] == [
        'Überschrift: [bold] "quoted"',
        "first",
        "second " + " ".join(["word"] * 100),
        "an example",
        "decoding",
        "decoding, 3 of 10, 2 documents/s",
    ]
    assert [event.get("run") for event in events] == [None, *["r1"] * 5]
    assert all((event["job"], event["levelname"]) == ("summarize", "INFO") for event in events)
    assert all(datetime.fromisoformat(event["asctime"]).tzinfo for event in events)


def test_markup_in_texts_is_printed_as_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("RAY_LOGGING_CONFIG_ENCODING", raising=False)
    new_console(job="summarize").print("a [bold] line")
    assert capsys.readouterr().out == "a [bold] line\n"


def test_narrow_terminal_shows_all_details() -> None:
    terminal = Console(file=io.StringIO(), force_terminal=True, width=60, highlight=False, color_system=None)
    with progress(terminal, "run r", 5000, show_time_left=False) as show:
        show("run r", 1200, DETAILS)
    assert isinstance(terminal.file, io.StringIO)
    output = terminal.file.getvalue()
    assert any("run r" in line and "1200/5000" in line for line in output.splitlines())
    assert DETAILS in " ".join(output.split())


def test_log_has_a_line_for_each_task_and_interval(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(new_console(), "starting", 5000, line_every_s=0.2) as show:
        show("starting", 0, "too early")
        show("decoding", 100)
        show("decoding", 200, "too early")
        time.sleep(0.2)
        show("decoding", 1200, DETAILS)
        show("decoding", 1300, "too early")
    assert capsys.readouterr().out.splitlines() == [
        "starting",
        "decoding, 100 of 5,000",
        f"decoding, 1,200 of 5,000, {DETAILS}",
    ]
