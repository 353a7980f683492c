"""A run that is killed, anywhere, and begun again gives what an undisturbed one gives, value for value."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from processes import processes_titled
from stage import Command, commits, difference, written_again

from pipeline.config.summarize import SummarizeConfig
from pipeline.inference.plan import plan_run
from pipeline.inference.run import execute
from pipeline.runs.progress import RunProgress

FILES = ("config.yaml", "plan.parquet", "rejects/run=", "summaries/run=", "ledger/run=", "manifest.json", "_SUCCESS")
DAILY = ("summaries/run=", "amid", "driver")
POINTS = [
    pytest.param(part, when, whom, marks=[] if (part, when, whom) == DAILY else pytest.mark.faults)
    for part in FILES
    for when in ("before", "amid", "after")
    for whom in (("driver", "worker") if "/" in part else ("driver",))
]


@pytest.mark.parametrize(("part", "when", "whom"), POINTS)
def test_killed_at_a_step_of_the_commit(
    store: Path, options: list[str], undisturbed: Path, tmp_path: Path, part: str, when: str, whom: str
) -> None:
    output = tmp_path / "out"
    command = Command(store, output, options)
    told = command.die_at(part, when, whom, tmp_path / "killed")
    published = bool(list(output.glob("runs/*/_SUCCESS")))
    assert published == (whom == "worker" or (part, when) == ("_SUCCESS", "after")), told
    before = commits(output)
    if not published:
        planned = bool(list(output.glob("runs/*/plan.parquet")))
        assert ("goes on from there" in command.finish()) == planned
    assert difference(output, undisturbed).is_none
    assert written_again(before) == 0
    assert not list(output.glob("lease/*")) or published, "who finds the lease of a process that is gone removes it"
    assert not list(output.glob("*/run=*/*.part")), "nothing is left of what was being written"


@pytest.mark.faults
def test_kill_an_actor_midway(tmp_path: Path, abstracts: list[str]) -> None:
    """Ray Data starts another actor and gives it the window again; no document is lost or comes twice."""
    # The shipped model takes a second for a few windows, so that at the first record most of the others are yet to come.
    pq.write_table(pa.table({"id": list(range(len(abstracts))), "text": abstracts}), tmp_path / "docs.parquet")
    others = set(processes_titled("SummarizeWindow"))  # of runs before, which nobody has cleared away yet
    killed: list[int] = []
    later: set[int] = set()

    def kill_once(_: RunProgress) -> None:
        pids = [pid for pid in processes_titled("SummarizeWindow") if pid not in others]
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
