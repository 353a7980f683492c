"""A run that is killed and begun again gives what an undisturbed one gives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from processes import processes_titled

from pipeline.config import SummarizeConfig
from pipeline.inference.plan import plan_run
from pipeline.inference.run import Progress, execute


def test_kill_the_driver_midway_and_run_again(tmp_path: Path, tiny_bundle: Path) -> None:
    texts = [f"Document number {n} speaks of {'graphs and ' * (n % 11)}trees." for n in range(400)]
    pq.write_table(pa.table({"id": list(range(400)), "text": texts}), tmp_path / "docs.parquet")

    def command(output: str) -> list[str]:
        return [
            *(sys.executable, "-m", "jobs.summarize", "--input.path", str(tmp_path / "docs.parquet")),
            *("--output.path", str(tmp_path / output), "--output.run_id", "r", "--model.path", str(tiny_bundle)),
            *("--resources.window_rows", "10", "--resources.actors", "1"),
        ]

    victim = subprocess.Popen(command("killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    written = tmp_path / "killed/summaries/run=r"
    try:
        while not (written.exists() and len(list(written.iterdir())) > 3):
            assert victim.poll() is None, "the run ended before it could be killed"
            time.sleep(0.05)
    finally:
        victim.kill()
        victim.wait()
    assert not (tmp_path / "killed/runs/r/_SUCCESS").exists()

    for output in ("killed", "undisturbed"):
        subprocess.run(command(output), check=True, capture_output=True)
    killed, undisturbed = (
        pads.dataset(tmp_path / output / "summaries/run=r").to_table().sort_by("id") for output in ("killed", "undisturbed")
    )
    assert killed["id"].to_pylist() == list(range(400))
    assert killed.drop_columns(["score"]).equals(undisturbed.drop_columns(["score"]))
    # Windows may hold other neighbours in another run, and sums of float32 their last bit by the shape of a batch.
    np.testing.assert_allclose(killed["score"], undisturbed["score"], rtol=1e-5)


def test_kill_an_actor_midway(tmp_path: Path, abstracts: list[str]) -> None:
    """Ray Data starts another actor and gives it the window again; no document is lost or comes twice."""
    # The shipped model takes a second for a few windows, so that at the first record most of the others are yet to come.
    pq.write_table(pa.table({"id": list(range(len(abstracts))), "text": abstracts}), tmp_path / "docs.parquet")
    killed: list[int] = []
    later: set[int] = set()

    def kill_once(_: Progress) -> None:
        pids = processes_titled("SummarizeWindow")
        if killed:
            later.update(pids)
        else:
            killed.extend(pids)
            for pid in pids:
                os.kill(pid, signal.SIGKILL)

    config = SummarizeConfig.model_validate(
        {
            "input": {"path": str(tmp_path / "docs.parquet")},
            "output": {"path": str(tmp_path / "out"), "run_id": "r"},
            "resources": {"actors": 1, "window_rows": 10},
        }
    )
    finished = execute(plan_run(config), kill_once)
    assert len(killed) == 1
    assert later - set(killed), "no other actor was needed"
    assert finished.manifest.counts.summarized == len(abstracts)
    written = pads.dataset(tmp_path / "out/summaries/run=r").to_table()["id"].to_pylist()
    assert sorted(written) == list(range(len(abstracts)))
