"""What jobs print, where a collector of logs reads it."""

from __future__ import annotations

import json
from datetime import datetime

import pytest
from rich.text import Text

from jobs.console import new_console, progress


def test_each_line_is_an_event_in_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_otherwise_lines_are_for_people(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("RAY_LOGGING_CONFIG_ENCODING", raising=False)
    new_console(job="summarize").print("a [bold] line")
    assert capsys.readouterr().out == "a [bold] line\n"
