"""The driver's progress is returned to it and written to progress.json."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.io.location import Location, open_location
from pipeline.runs import progress
from pipeline.runs.layout import run_folder
from pipeline.runs.manifest import Counts
from pipeline.runs.progress import ProgressWriter, RunProgress, read_progress


@pytest.fixture
def output(tmp_path: Path) -> Location:
    return open_location(str(tmp_path), "--output.path")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "WRITE_EVERY_S", 0.05)
    monkeypatch.setattr(progress, "RECENT_S", 0.4)
    monkeypatch.setattr(progress, "SAMPLE_EVERY_S", 0.01)


def progress_writer(output: Location, documents: int = 1000) -> ProgressWriter:
    return ProgressWriter(run_folder(output, "r").child("progress.json"), "r", documents)


def wait_for(output: Location, condition: Callable[[RunProgress], bool]) -> RunProgress:
    """Read progress.json until the condition holds."""
    for _ in range(500):
        written = read_progress(output, "r")
        if written is not None and condition(written):
            return written
        time.sleep(0.01)
    raise AssertionError(f"condition not met by {read_progress(output, 'r')}")


@pytest.mark.usefixtures("quick")
def test_file_follows_the_run(output: Location) -> None:
    with progress_writer(output) as writer:
        assert writer.resume_from(Counts(read=100, summarized=100), 100).processed == 100
        starting = wait_for(output, lambda written: written.resumed == 100)
        assert (starting.phase, starting.processed, starting.details()) == ("starting", 100, "0 rejected")
        writer.update(Counts(read=300, summarized=280, rejected={"null_text": 20}), seconds=10.0, resumed=100, actors=2)
        running = wait_for(output, lambda written: written.phase == "running")
        assert (running.processed, running.documents, running.resumed) == (300, 1000, 100)
        assert running.details() == "20 documents/s, 2 actors, 20 rejected"
        assert json.loads((run_folder(output, "r").child("progress.json")).read())["taken_over"] == 100
        wait_for(output, lambda written: written.at > running.at)  # rewritten although no window was completed
    finished = read_progress(output, "r")
    assert finished is not None
    assert (finished.phase, finished.seconds_left, finished.counts.summarized) == ("finished", None, 280)
    with pytest.raises(ZeroDivisionError), progress_writer(output):
        _ = 1 / 0
    stopped = read_progress(output, "r")
    assert stopped is not None
    assert stopped.phase == "stopped"


@pytest.mark.usefixtures("quick")
def test_recent_rate_and_time_left(output: Location) -> None:
    with progress_writer(output) as writer:
        first = writer.update(Counts(read=100, summarized=100), seconds=100.0, resumed=0, actors=1)
        assert (first.recent_documents_per_s, first.seconds_left) == (None, None)
        for step in range(1, 9):  # 100 documents in 0.1 s, half of them skipped
            time.sleep(0.1)
            counts = Counts(read=100 + step * 100, summarized=100 + step * 50, skipped={"summarized": step * 50})
            latest = writer.update(counts, seconds=100.0 + step / 10, resumed=0, actors=1)
        assert latest.documents_per_s == pytest.approx(500 / 100.8)
        assert latest.recent_documents_per_s is not None
        assert latest.seconds_left is not None
        assert 250 < latest.recent_documents_per_s <= 500
        assert 100 / 1000 <= latest.seconds_left < 100 / 500
        time.sleep(0.5)  # all samples but the last are older than the recent period
        idle = writer.update(counts, seconds=101.3, resumed=0, actors=1)
        assert idle.recent_documents_per_s == 0


@pytest.mark.usefixtures("quick")
def test_run_continues_if_progress_cannot_be_written(tmp_path: Path, output: Location) -> None:
    (tmp_path / "runs/r/progress.json/full").mkdir(parents=True)
    with progress_writer(output) as writer:
        time.sleep(0.2)
        assert writer.update(Counts(read=1, summarized=1), seconds=1.0, resumed=0, actors=1).phase == "running"


def test_file_of_another_version_is_ignored(tmp_path: Path, output: Location) -> None:
    assert read_progress(output, "r") is None
    (tmp_path / "runs/r").mkdir(parents=True)
    (tmp_path / "runs/r/progress.json").write_text(json.dumps({"phase": "dreaming"}))
    assert read_progress(output, "r") is None
