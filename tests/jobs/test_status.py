"""``jobs.status`` and ``jobs.compact``."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job import JobResult, job_command, run_command

from pipeline.errors import EXIT_OK, UserError
from pipeline.io.location import open_location
from pipeline.runs.status import run_status


def state(output: Path, run_id: str | None = None) -> str:
    return run_status(open_location(str(output), "--output.path"), run_id).state


@pytest.fixture(scope="module")
def killed_run(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> tuple[Path, JobResult]:
    """The output of a run that was killed, and the result of jobs.status while it ran."""
    folder = tmp_path_factory.mktemp("killed")
    output, progress = folder / "out", folder / "out/runs/r/progress.json"
    texts = [f"Document number {row} is about graphs." for row in range(3000)]
    pq.write_table(pa.table({"id": list(range(len(texts))), "text": texts}), folder / "docs.parquet")
    options = ["--input.path", folder / "docs.parquet", "--output.path", output, "--output.run_id", "r"]
    options += ["--model.path", tiny_bundle, "--resources.window_rows", 5, "--resources.actors", 1]
    driver = subprocess.Popen(
        job_command("summarize", *options), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        while not (progress.exists() and json.loads(progress.read_bytes())["phase"] == "running"):
            assert driver.poll() is None, "the run ended too early"
            time.sleep(0.1)
        driver.send_signal(signal.SIGSTOP)  # for some seconds, a stopped driver looks like a running one
        status = run_command("status", "--output.path", output)
    finally:
        driver.kill()
        driver.wait()
    return output, status


def test_running_run(killed_run: tuple[Path, JobResult]) -> None:
    _, status = killed_run
    assert status.status == EXIT_OK, status.err
    first, second = status.out.splitlines()
    assert first.startswith("run r, ")
    for part in (" of 3,000, ", " documents/s, ", ", 1 actor, ", "0 rejected"):
        assert part in first
    assert second.startswith("running: run r, process ")
    assert "last progress 0:00:0" in second


def test_states_of_an_interrupted_run(killed_run: tuple[Path, JobResult], tmp_path: Path) -> None:
    output = Path(shutil.copytree(killed_run[0], tmp_path / "out"))
    assert state(output).startswith("interrupted: run r, process ")
    [claim] = (output / "lease").glob("*.json")
    remote_claim = json.loads(claim.read_text()) | {"machine": "far away"}
    claim.write_text(json.dumps(remote_claim))
    progress = output / "runs/r/progress.json"
    values = json.loads(progress.read_text())
    progress.write_text(json.dumps(values | {"at": "2020-01-01T00:00:00Z"}))
    assert " on far holds the lease but does not respond; last progress" in state(output)
    progress.write_text(json.dumps(values | {"at": "2120-01-01T00:00:00Z"}))  # the clock of the driver is ahead
    assert state(output).startswith("running: run r, process ")
    progress.unlink()
    assert "does not respond; no progress recorded" in state(output)
    claim.write_text(json.dumps(remote_claim | {"run_id": "s"}))
    assert state(output, "r").startswith("interrupted; no progress recorded; resume with the same command; run s, process ")
    claim.unlink()
    progress.write_text(json.dumps(values | {"phase": "stopped"}))
    assert state(output).startswith("stopped; last progress")
    progress.write_text(json.dumps(values | {"phase": "finished"}))
    assert state(output).startswith("not published")
    (output / "runs/r/_SUCCESS").write_text('{"sequence": 3}')
    assert state(output).startswith("finished, number 3 ")
    with pytest.raises(UserError, match=r"run s .*--output\.run_id"):
        state(output, "s")
    with pytest.raises(UserError, match=r"--output\.path"):
        state(tmp_path / "nowhere")


@pytest.mark.faults
def test_compact_merges_the_ledger(killed_run: tuple[Path, JobResult], tmp_path: Path) -> None:
    output = Path(shutil.copytree(killed_run[0], tmp_path / "out"))
    assert "no run is finished" in run_command("compact", "--output.path", output).error
    (output / "runs/r/_SUCCESS").write_text('{"sequence": 1}')
    files = len(list((output / "ledger/run=r").iterdir()))
    done = run_command("compact", "--output.path", output)
    assert done.status == EXIT_OK, done.err
    assert f"{output}: {files * 5:,} entries; replaced {files:,} files" in done.out
    assert "no run is finished" in run_command("compact", "--output.path", tmp_path / "missing").error
    assert not (tmp_path / "missing").exists()
