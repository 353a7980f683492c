"""Runs whose disk, input, clock or memory fails: the message names the cause, and the next command completes the run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import libfaketime
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray_cluster import local_worker_pids
from summarize_command import SummarizeCommand, compare_outputs, read_rows, run_ids, write_documents

from pipeline.config.summarize import SummarizeConfig
from pipeline.errors import UserError
from pipeline.inference.plan import plan_run
from pipeline.inference.run import execute
from pipeline.runs.progress import RunProgress
from pipeline.runs.summaries import read_summaries

pytestmark = pytest.mark.faults

MEMORY_CGROUPS = Path("/sys/fs/cgroup/memory")


class Disk:
    """A small mounted file system."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, *options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    disk = Disk(folder)
    try:
        disk.mount("size=96k")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this process may not mount a file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fail(command: SummarizeCommand) -> str:
    """Run a command that must end with an error the user can repair, and return what it printed."""
    process = command.start()
    log, _ = process.communicate(timeout=300)
    assert process.returncode == 2, log
    assert "Traceback" not in log
    return log


def test_full_disk(documents: Path, options: list[str], uninterrupted: Path, disk: Disk) -> None:
    output = disk.folder / "out"
    command = SummarizeCommand(documents, output, options)
    log = fail(command)
    assert "No space left on device" in log
    assert f"cannot write {output}" in log
    assert list(output.glob("ledger/run=*/part-*.parquet")), "the disk was too small for any window"
    assert not run_ids(output)
    disk.mount("remount", "size=100m")
    command.finish()
    assert run_ids(output) == run_ids(output, "plan.parquet"), "the second command resumes the run"
    assert compare_outputs(output, uninterrupted).is_none
    assert not list(output.glob("**/*.part"))


def test_read_only_output(documents: Path, options: list[str], uninterrupted: Path, disk: Disk) -> None:
    disk.mount("remount", "ro")
    output = disk.folder / "out"
    command = SummarizeCommand(documents, output, options)
    log = fail(command)
    assert f"cannot write {output}" in log
    assert "Read-only file system" in log
    disk.mount("remount", "rw", "size=100m")
    command.finish()
    assert compare_outputs(output, uninterrupted).is_none


def test_input_file_disappears(tmp_path: Path, tiny_bundle: Path) -> None:
    folder = write_documents(tmp_path / "in", [f"Document number {n} speaks of graphs." for n in range(100)], 2)
    config = SummarizeConfig.model_validate(
        {
            "input": {"path": str(folder)},
            "output": {"path": str(tmp_path / "out")},
            "model": {"path": str(tiny_bundle)},
            "resources": {"actors": 1, "window_rows": 10},
        }
    )
    plan = plan_run(config)
    (folder / "001.parquet").unlink()
    with pytest.raises(UserError, match=r"001\.parquet: No such file or directory; .*--input\.on_bad_file skip"):
        execute(plan, lambda _: None)
    assert execute(plan_run(config), lambda _: None).manifest.counts.summarized == 50
    assert read_rows(tmp_path / "out", "summaries")["id"].to_pylist() == list(range(50))


@pytest.mark.parametrize("moment", ["during a run", "between runs"])
def test_clock_jumps_back(tmp_path: Path, options: list[str], moment: str) -> None:
    """libfaketime changes the clock of all processes of the run: the driver, Ray's own processes and the workers."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    environment = {
        "LD_PRELOAD": str(Path(libfaketime.__file__).parent / "vendor/libfaketime/src/libfaketime.so.1"),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    folder = write_documents(tmp_path / "in", [f"Document number {n} speaks of graphs." for n in range(300)], 2)
    command = SummarizeCommand(folder, tmp_path / "out", options, list(environment.items()))
    if moment == "during a run":
        process = command.start()
        while process.poll() is None and not list((tmp_path / "out").glob("ledger/run=*/part-*.parquet")):
            time.sleep(0.01)
        clock.write_text("-1d")
        log, _ = process.communicate(timeout=300)
        assert process.returncode == 0, log
    else:
        command.finish()
        clock.write_text("-1d")
    assert read_rows(tmp_path / "out", "summaries")["id"].to_pylist() == list(range(300))
    changed = pa.table({"id": [0], "text": ["Document number 0 now speaks of something else: trees."]})
    pq.write_table(pa.concat_tables([changed, pq.read_table(folder / "000.parquet").slice(1)]), folder / "000.parquet")
    assert "skipped 299" in command.finish()
    runs = {row["id"]: row["run"] for batch in read_summaries(str(tmp_path / "out")) for row in batch.to_pylist()}
    assert len(runs) == 300
    assert list(runs.values()).count(runs[0]) == 1, "the latest summary of document 0 is the second run's"


def test_actor_killed_for_lack_of_memory(tmp_path: Path, abstracts: list[str]) -> None:
    """After the first window, a control group limits the first actor to less memory than it uses."""
    group = MEMORY_CGROUPS / f"nightshift-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.oom_control").read_text()
    except OSError:
        pytest.skip("this process may not limit the memory of others")
    pq.write_table(pa.table({"id": range(len(abstracts)), "text": abstracts}), tmp_path / "docs.parquet")
    limited: list[int] = []

    def limit_actor(_: RunProgress) -> None:
        if not limited:
            limited.extend(local_worker_pids("SummarizeWindow"))
            (group / "memory.limit_in_bytes").write_text("0")
            for pid in limited:
                (group / "cgroup.procs").write_text(str(pid))

    config = SummarizeConfig.model_validate(
        {
            "input": {"path": str(tmp_path / "docs.parquet")},
            "output": {"path": str(tmp_path / "out"), "run_id": "r"},
            "resources": {"actors": 1, "window_rows": 10},
        }
    )
    try:
        run = execute(plan_run(config), limit_actor)
        killed = int((group / "memory.oom_control").read_text().split("oom_kill ")[-1])
        assert killed >= 1, "nothing was killed"
        assert run.manifest.counts.summarized == len(abstracts)
        assert read_rows(tmp_path / "out", "summaries")["id"].to_pylist() == list(range(len(abstracts)))
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        psutil.wait_procs([psutil.Process(pid) for pid in limited if psutil.pid_exists(pid)], timeout=10)
        group.rmdir()
