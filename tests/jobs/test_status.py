"""``jobs.status`` and ``jobs.compact``, and what the screen shows of a run."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from jobs.console import new_console, progress
from pipeline.errors import UserError
from pipeline.io.location import open_location
from pipeline.runs.status import run_status


def state(output: Path, run_id: str | None = None) -> str:
    return run_status(open_location(str(output), "--output.path"), run_id).state


def job(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"jobs.{name}", *options]
    return subprocess.run(command, env={**os.environ, "RAY_ADDRESS": ""}, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> tuple[Path, str]:
    """The output of a run that was killed, and what jobs.status printed while it ran."""
    folder = tmp_path_factory.mktemp("watched")
    texts = [f"Document number {n} speaks of graphs." for n in range(3000)]
    pq.write_table(pa.table({"id": list(range(len(texts))), "text": texts}), folder / "docs.parquet")
    command = [sys.executable, "-m", "jobs.summarize", "--input.path", str(folder / "docs.parquet")]
    command += ["--output.path", str(folder / "out"), "--output.run_id", "r", "--model.path", str(tiny_bundle)]
    command += ["--resources.window_rows", "5", "--resources.actors", "1"]
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    written = folder / "out/runs/r/progress.json"
    try:
        while not (written.exists() and json.loads(written.read_bytes())["phase"] == "running"):
            assert driver.poll() is None, "the run ended before it was seen"
            time.sleep(0.1)
        driver.send_signal(signal.SIGSTOP)  # which no status can tell from a driver at work, within seconds
        seen = job("status", "--output.path", str(folder / "out"))
        assert seen.returncode == 0, seen.stderr
    finally:
        driver.kill()
        driver.wait()
    return folder / "out", seen.stdout.replace(f"process {driver.pid}", "process PID")


def test_a_run_that_is_being_done(watched: tuple[Path, str]) -> None:
    first, second = watched[1].splitlines()
    assert first.startswith("run r, ")
    for said in (" of 3,000, ", " documents/s, ", ", 1 actor, ", "0 rejected"):
        assert said in first
    assert second.startswith("running: run r, process PID on ")
    assert "last progress 0:00:0" in second


def test_a_run_that_was_cut_off(watched: tuple[Path, str], tmp_path: Path) -> None:
    output = Path(shutil.copytree(watched[0], tmp_path / "out"))
    assert state(output).startswith("interrupted: run r, process ")
    [claim] = (output / "lease").glob("*.json")
    elsewhere = json.loads(claim.read_text()) | {"machine": "far away"}
    claim.write_text(json.dumps(elsewhere))
    said = output / "runs/r/progress.json"
    values = json.loads(said.read_text())
    said.write_text(json.dumps(values | {"at": "2020-01-01T00:00:00Z"}))
    assert " on far holds the lease but does not respond; last progress" in state(output)
    said.write_text(json.dumps(values | {"at": "2120-01-01T00:00:00Z"}))  # its clock is ahead
    assert state(output).startswith("running: run r, process ")
    said.unlink()
    assert "does not respond; no progress recorded" in state(output)
    claim.write_text(json.dumps(elsewhere | {"run_id": "s"}))
    assert state(output, "r").startswith("interrupted; no progress recorded; resume with the same command; run s, process ")
    claim.unlink()
    said.write_text(json.dumps(values | {"phase": "stopped"}))
    assert state(output).startswith("stopped; last progress")
    said.write_text(json.dumps(values | {"phase": "finished"}))
    assert state(output).startswith("not published: more documents were rejected")
    (output / "runs/r/_SUCCESS").write_text('{"sequence": 3}')
    assert state(output) == "finished, number 3 of the runs in this folder"
    with pytest.raises(UserError, match=r"run s .*--output\.run_id"):
        state(output, "s")
    with pytest.raises(UserError, match=r"no run has started .*--output\.path"):
        state(tmp_path / "nowhere")


@pytest.mark.faults
def test_a_ledger_is_compacted_by_the_job(watched: tuple[Path, str], tmp_path: Path) -> None:
    output = Path(shutil.copytree(watched[0], tmp_path / "out"))
    nothing = job("compact", "--output.path", str(output))
    assert (nothing.returncode, nothing.stderr.count("\n")) == (2, 1)
    assert "no run is finished in" in nothing.stderr
    (output / "runs/r/_SUCCESS").write_text('{"sequence": 1}')
    files = len(list((output / "ledger/run=r").iterdir()))
    done = job("compact", "--output.path", str(output))
    assert done.returncode == 0, done.stderr
    assert f"the ledger of {output} has {files * 5:,} entries; {files:,} files were replaced" in done.stdout
    missing = job("compact", "--output.path", str(tmp_path / "missing"))
    assert missing.returncode == 2
    assert "no run is finished in" in missing.stderr
    assert not (tmp_path / "missing").exists()


def test_a_terminal_shows_one_live_view_and_a_log_a_line_at_times(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Console(file=io.StringIO(), force_terminal=True, width=60, highlight=False, color_system=None)
    more = "310 documents/s (290 in the last minute), 0:01:20 left, 2 actors"
    with progress(screen, "run r: starting", 5000, 30.0, says_time_left=True) as show:
        show("run r", 1200, more)
    assert isinstance(screen.file, io.StringIO)
    shown = screen.file.getvalue()
    assert any("run r" in line and "1200/5000" in line for line in shown.splitlines())
    assert more in " ".join(shown.split()), "a narrow screen leaves nothing out"

    with progress(new_console(), "run r: starting", 5000, 0.2, says_time_left=True) as show:
        show("run r", 100, "too early")
        time.sleep(0.2)
        show("run r", 1200, more)
        show("run r", 1300, "too early")
    assert capsys.readouterr().out.splitlines() == ["run r: starting", f"run r, 1,200 of 5,000, {more}"]
