"""What a run stands on fails it: the disk, the input, the clock, the memory. It says so, and the next command completes it."""

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
from processes import processes_titled
from stage import Command, difference, rows_of, write_store

from pipeline.config.summarize import SummarizeConfig
from pipeline.errors import UserError
from pipeline.inference.plan import plan_run
from pipeline.inference.run import execute
from pipeline.runs.progress import RunProgress
from pipeline.runs.summaries import read_summaries

pytestmark = pytest.mark.faults

LIMITS = Path("/sys/fs/cgroup/memory")


class Disk:
    """A small file system of its own, mounted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def mount(self, *options: str) -> None:
        """Or mount it anew with other options."""
        subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    disk = Disk(folder)
    try:
        disk.mount("size=160k")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this process may not mount a file system")
    yield disk
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def told_by_failure(command: Command, status: int) -> str:
    process = command.start()
    told, _ = process.communicate(timeout=300)
    assert process.returncode == status, told
    assert "Traceback" not in told
    return told


def test_a_full_disk(store: Path, options: list[str], undisturbed: Path, disk: Disk) -> None:
    output = disk.folder / "out"
    command = Command(store, output, options)
    told = told_by_failure(command, 2)
    assert "No space left on device" in told
    assert f"cannot write {output}" in told
    assert list(output.glob("ledger/run=*/part-*.parquet")), "the disk was too small for any window"
    assert not list(output.glob("runs/*/_SUCCESS"))
    disk.mount("remount", "size=100m")
    assert "goes on from there" in command.finish()
    assert difference(output, undisturbed).is_none
    assert not list(output.glob("**/*.part"))


def test_an_output_that_is_read_only(store: Path, options: list[str], undisturbed: Path, disk: Disk) -> None:
    disk.mount("remount", "ro")
    output = disk.folder / "out"
    command = Command(store, output, options)
    told = told_by_failure(command, 2)
    assert f"cannot write {output}" in told
    assert "Read-only file system" in told
    disk.mount("remount", "rw", "size=100m")
    command.finish()
    assert difference(output, undisturbed).is_none


def test_a_file_that_vanishes(tmp_path: Path, tiny_bundle: Path) -> None:
    texts = [f"Document number {n} speaks of graphs." for n in range(100)]
    folder = write_store(tmp_path / "in", texts, 2)
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
    with pytest.raises(UserError, match=r"cannot read .*001\.parquet: No such file or directory; .*--input\.on_bad_file skip"):
        execute(plan, lambda _: None)
    assert execute(plan_run(config), lambda _: None).manifest.counts.summarized == 50
    assert rows_of(tmp_path / "out", "summaries")["id"].to_pylist() == list(range(50))


@pytest.mark.parametrize("when", ["midway", "between two nights"])
def test_a_clock_that_jumps_back(tmp_path: Path, options: list[str], when: str) -> None:
    """By libfaketime, in every process of the run: the driver, Ray's own, and its workers."""
    clock = tmp_path / "clock"
    clock.write_text("+0")
    environment = {
        "LD_PRELOAD": str(Path(libfaketime.__file__).parent / "vendor/libfaketime/src/libfaketime.so.1"),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    texts = [f"Document number {n} speaks of graphs." for n in range(300)]
    folder = write_store(tmp_path / "in", texts, 2)
    command = Command(folder, tmp_path / "out", options, list(environment.items()))
    if when == "midway":
        process = command.start()
        while process.poll() is None and not list((tmp_path / "out").glob("ledger/run=*/part-*.parquet")):
            time.sleep(0.01)
        clock.write_text("-1d")
        told, _ = process.communicate(timeout=300)
        assert process.returncode == 0, told
    else:
        command.finish()
        clock.write_text("-1d")
    first = rows_of(tmp_path / "out", "summaries")
    assert first["id"].to_pylist() == list(range(300))
    changed = pa.table({"id": [0], "text": ["Document number 0 now speaks of quite another matter: trees."]})
    pq.write_table(pa.concat_tables([changed, pq.read_table(folder / "000.parquet").slice(1)]), folder / "000.parquet")
    assert "skipped 299" in command.finish()
    latest = {row["id"]: row["run"] for batch in read_summaries(str(tmp_path / "out")) for row in batch.to_pylist()}
    assert len(latest) == 300
    assert list(latest.values()).count(latest[0]) == 1, "the latest summary of 0 is that of the second night"


def test_an_actor_that_the_kernel_kills_for_want_of_memory(tmp_path: Path, abstracts: list[str]) -> None:
    """The first actor's is bound to what it has, by a control group, once a window is done."""
    group = LIMITS / f"nightshift-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.oom_control").read_text()
    except OSError:
        pytest.skip("this process may not bind the memory of others")
    pq.write_table(pa.table({"id": list(range(len(abstracts))), "text": abstracts}), tmp_path / "docs.parquet")
    bound: list[int] = []

    def bind(_: RunProgress) -> None:
        if not bound:
            bound.extend(processes_titled("SummarizeWindow"))
            (group / "memory.limit_in_bytes").write_text("0")  # beyond what it has
            for pid in bound:
                (group / "cgroup.procs").write_text(str(pid))

    config = SummarizeConfig.model_validate(
        {
            "input": {"path": str(tmp_path / "docs.parquet")},
            "output": {"path": str(tmp_path / "out"), "run_id": "r"},
            "resources": {"actors": 1, "window_rows": 10},
        }
    )
    try:
        finished = execute(plan_run(config), bind)
        killed = int((group / "memory.oom_control").read_text().split("oom_kill ")[-1])
        assert killed >= 1, "nothing was killed"
        assert finished.manifest.counts.summarized == len(abstracts)
        assert rows_of(tmp_path / "out", "summaries")["id"].to_pylist() == list(range(len(abstracts)))
    finally:
        for pid in (group / "cgroup.procs").read_text().split():
            os.kill(int(pid), signal.SIGKILL)
        psutil.wait_procs([psutil.Process(pid) for pid in bound if psutil.pid_exists(pid)], timeout=10)
        group.rmdir()
