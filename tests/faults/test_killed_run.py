"""A run that is killed at any point and repeated gives the output of an uninterrupted run, value for value."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray_cluster import local_worker_pids
from summarize_command import SummarizeCommand, compare_outputs, ledger_segments, read_rows, rewritten, run_ids

from pipeline.config.summarize import SummarizeConfig
from pipeline.inference.plan import plan_run
from pipeline.inference.run import execute
from pipeline.runs.progress import RunProgress

WRITTEN_FILES = ("config.yaml", "plan.parquet", "rejects/run=", "summaries/run=", "ledger/run=", "manifest.json", "_SUCCESS")
"""Parts of the paths of the files that a run writes, in this order."""

DEFAULT_TIER = ("summaries/run=", "during", "driver")


def kill_points(moments: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """Return all combinations of a file, a moment of its write and a victim. Workers write the files with a slash."""
    return [
        (path_part, moment, victim)
        for path_part in WRITTEN_FILES
        for moment in moments
        for victim in (("driver", "worker") if "/" in path_part else ("driver",))
    ]


@pytest.mark.parametrize(
    ("path_part", "moment", "victim"),
    [
        pytest.param(*point, marks=[] if point == DEFAULT_TIER else pytest.mark.faults)
        for point in kill_points(("before", "during", "after"))
    ],
)
def test_run_killed_at_a_write(
    documents: Path, options: list[str], uninterrupted: Path, tmp_path: Path, path_part: str, moment: str, victim: str
) -> None:
    output = tmp_path / "out"
    command = SummarizeCommand(documents, output, options)
    log = command.kill_at_write(path_part, moment, victim, tmp_path / "killed")
    finished = run_ids(output)
    assert bool(finished) == (victim == "worker" or (path_part, moment) == ("_SUCCESS", "after")), log
    segments = ledger_segments(output)
    if not finished:
        planned = run_ids(output, "plan.parquet")
        command.finish()
        assert run_ids(output) == planned or not planned, "the second command resumes the run"
    assert compare_outputs(output, uninterrupted).is_none
    assert rewritten(segments) == 0
    assert finished or not list(output.glob("lease/*")), "the second command removes the lease of a dead process"
    assert not list(output.glob("*/run=*/*.part")), "partly written files are removed"


@pytest.mark.faults
def test_killed_actor_is_replaced(tmp_path: Path, abstracts: list[str]) -> None:
    """Ray Data starts another actor, which repeats the window; no document is missing or duplicate."""
    # The shipped model takes a second for a few windows, so most windows are still to come at the first progress record.
    pq.write_table(pa.table({"id": range(len(abstracts)), "text": abstracts}), tmp_path / "docs.parquet")
    earlier = set(local_worker_pids("SummarizeWindow"))  # of earlier runs that Ray has not removed yet
    killed: list[int] = []
    replacements: set[int] = set()

    def kill_once(_: RunProgress) -> None:
        pids = [pid for pid in local_worker_pids("SummarizeWindow") if pid not in earlier]
        if killed:
            replacements.update(pids)
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
    run = execute(plan_run(config), kill_once)
    assert len(killed) == 1
    assert replacements - set(killed), "no other actor was started"
    assert run.manifest.counts.summarized == len(abstracts)
    assert read_rows(tmp_path / "out", "summaries")["id"].to_pylist() == list(range(len(abstracts)))
