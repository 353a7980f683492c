"""Where a run stands, as its driver notes it."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from pipeline.io.location import Location, open_location
from pipeline.runs import progress
from pipeline.runs.layout import run_folder
from pipeline.runs.manifest import Counts
from pipeline.runs.progress import ProgressWriter, read_progress


@pytest.fixture
def output(tmp_path: Path) -> Location:
    return open_location(str(tmp_path), "--output.path")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "WRITE_EVERY_S", 0.05)
    monkeypatch.setattr(progress, "_RECENT_S", 0.4)
    monkeypatch.setattr(progress, "_SAMPLE_EVERY_S", 0.01)


def journal(output: Location, documents: int = 1000) -> ProgressWriter:
    return ProgressWriter(run_folder(output, "r").child("progress.json"), "r", documents)


@pytest.mark.usefixtures("quick")
def test_the_file_follows_the_run(output: Location) -> None:
    with journal(output) as noted:
        assert noted.take_over(Counts(read=100, summarized=100), 100).seen == 100
        time.sleep(0.3)
        begun = read_progress(output, "r")
        assert begun is not None
        assert (begun.phase, begun.seen, begun.details()) == ("starting", 100, "0 rejected")
        noted.note(Counts(read=300, summarized=280, rejected={"null_text": 20}), 10.0, 100, 2)
        time.sleep(0.3)
        running = read_progress(output, "r")
        assert running is not None
        assert (running.phase, running.seen, running.documents) == ("running", 300, 1000)
        assert running.details() == "20 documents/s, 2 actors, 20 rejected"
        time.sleep(0.3)
        later = read_progress(output, "r")
        assert later is not None
        assert later.at > running.at, "a driver that waits for its windows says that it is alive"
    ended = read_progress(output, "r")
    assert ended is not None
    assert (ended.phase, ended.seconds_left, ended.counts.summarized) == ("finished", None, 280)
    with pytest.raises(ZeroDivisionError), journal(output):
        _ = 1 / 0
    stopped = read_progress(output, "r")
    assert stopped is not None
    assert stopped.phase == "stopped"


@pytest.mark.usefixtures("quick")
def test_the_last_minute_and_the_time_left(output: Location) -> None:
    with journal(output) as noted:
        at = noted.note(Counts(read=100, summarized=100), 100.0, 0, 1)
        assert (at.recent_documents_per_s, at.seconds_left) == (None, None)
        for step in range(1, 9):  # a hundred documents in 0.1 s, of which half were done before
            time.sleep(0.1)
            counts = Counts(read=100 + step * 100, summarized=100 + step * 50, skipped={"summarized": step * 50})
            at = noted.note(counts, 100.0 + step / 10, 0, 1)
        assert at.documents_per_s == pytest.approx(500 / 100.8)
        assert at.recent_documents_per_s is not None
        assert at.seconds_left is not None
        assert 250 < at.recent_documents_per_s <= 500
        assert 100 / 1000 <= at.seconds_left < 100 / 500
        assert len(noted._recent) < 8, "what is older than a minute is forgotten"


@pytest.mark.usefixtures("quick")
def test_a_run_goes_on_where_its_progress_cannot_be_written(tmp_path: Path, output: Location) -> None:
    (tmp_path / "runs/r/progress.json/full").mkdir(parents=True)
    with journal(output) as noted:
        time.sleep(0.2)
        assert noted.note(Counts(read=1, summarized=1), 1.0, 0, 1).phase == "running"


def test_a_file_of_another_version_says_nothing(tmp_path: Path, output: Location) -> None:
    assert read_progress(output, "r") is None
    (tmp_path / "runs/r").mkdir(parents=True)
    (tmp_path / "runs/r/progress.json").write_text(json.dumps({"phase": "dreaming"}))
    assert read_progress(output, "r") is None
