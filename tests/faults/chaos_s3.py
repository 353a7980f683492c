"""Kill processes of runs from S3 to S3 at random moments, over a network that fails at random.

    python tests/faults/chaos_s3.py --kills 20 --json benchmarks/object_store.json

Each run suffers several kills, of its driver, a decoding actor, a read task or a write task, and is repeated with the same
command until it finishes. Meanwhile a share of its requests fails. Then jobs.verify checks the output, and each row is compared
with that of an uninterrupted run over local files. Exit status 1 if a row is missing, duplicate or different.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
from pyarrow import fs

sys.path.append(str(Path(__file__).parents[1] / "helpers"))

from faulty_proxy import RandomFaults, faulty_proxy
from ray_cluster import ray_workers
from s3_server import S3Server, s3_server
from summarize_command import SummarizeCommand, compare_outputs, write_documents

from pipeline.config.types import SAMPLE
from pipeline.errors import EXIT_STOPPED

_VICTIMS = ("driver", "ReadWindows", "SummarizeWindow", "WriteWindow")
_TIMEOUT_S = 300
_LIST_FILES = """
import re, sys, time
from pathlib import Path
from pipeline.io.location import open_location
# VmHWM, because a new process inherits the peak that getrusage returns from the process that started it.
peak_mib = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
root, peak_before, started = open_location(sys.argv[1], "--input.path"), peak_mib(), time.monotonic()
files = root.parquet_files(recursive=True)
print(len(files), round(time.monotonic() - started, 1), round(peak_mib() - peak_before, 1))
"""
_OPTIONS = ["--resources.window_rows=25", "--resources.actors=1", "--resources.token_budget=16384"]


def main() -> int:
    """Run the experiment and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="kills of all runs together")
    parser.add_argument("--kills-per-run", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.02, help="share of the requests that fail")
    parser.add_argument("--rows", type=int, default=1000, help="documents per run")
    parser.add_argument("--keys", type=int, default=0, help="if set, first create so many objects and measure listing them")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="file to write the figures to")
    options = parser.parse_args()
    rng, kills, rows = random.Random(options.seed), Counter[str](), Counter[str](missing=0, duplicate=0, changed=0)
    texts = pq.read_table(SAMPLE / "documents")["text"].to_pylist()[: options.rows]
    texts[::50] = [None] * len(texts[::50])
    figures: dict[str, Any] = {
        "date": date.today().isoformat(),
        "commit": _output_of("git", "rev-parse", "HEAD"),
        "command": f"python tests/faults/chaos_s3.py {' '.join(sys.argv[1:])}",
        "server": _output_of("radosgw", "--version"),
        "documents_per_run": len(texts),
        "runs": 0,
        "commands": 0,
    }
    with tempfile.TemporaryDirectory() as name, s3_server() as server, faulty_proxy(server.port) as network:
        folder = Path(name)
        os.environ.update(server.credentials | {"AWS_ENDPOINT_URL": network.endpoint})
        if options.keys:
            figures["listing"] = _measure_listing(server, options.keys)
        documents = write_documents(folder / "in", texts, 4)
        started = time.monotonic()
        SummarizeCommand(documents, folder / "uninterrupted", _OPTIONS).finish()
        figures["seconds_uninterrupted"] = uninterrupted_s = round(time.monotonic() - started, 1)
        print(json.dumps(figures, indent=2), flush=True)
        network.choose_fault = RandomFaults(options.share, options.seed)
        while True:
            figures |= {
                "kills": dict(kills),
                "requests": dict(network.requests),
                "faults": {f"{fault}, {method}": count for (fault, method), count in sorted(network.faults.items())},
                "rows": dict(rows),
            }
            if options.json:
                Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")
            if kills.total() >= options.kills:
                return int(any(rows.values()))
            bucket = f"chaos-{uuid.uuid4().hex[:12]}"
            server.filesystem().create_dir(bucket)
            fs.copy_files(str(documents), f"{bucket}/in", fs.LocalFileSystem(), server.filesystem())
            command = SummarizeCommand(f"s3://{bucket}/in", f"s3://{bucket}/out", _OPTIONS)
            run_kills = min(options.kills_per_run, options.kills - kills.total())
            figures["commands"] += _disturb(
                command,
                lambda count: sorted((rng.uniform(0, uninterrupted_s), rng.choice(_VICTIMS)) for _ in range(count)),
                run_kills,
                kills,
            )
            difference = compare_outputs(_download(server, bucket, folder / bucket), folder / "uninterrupted")
            figures["runs"] += 1
            rows.update(missing=difference.missing, duplicate=difference.duplicate, changed=difference.changed)
            print(f"run {figures['runs']}, {kills.total()} kills so far: {difference}", flush=True)


def _output_of(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _disturb(
    command: SummarizeCommand,
    draw_schedule: Callable[[int], list[tuple[float, str]]],
    run_kills: int,
    kills: Counter[str],
) -> int:
    """Repeat the command until its run has finished, killing processes, and return how often it was started.

    Args:
        draw_schedule: returns the times of a number of kills, in seconds after the start of a command, and the victims.
        run_kills: number of kills of this run.
        kills: totals by victim, which are updated.
    """
    commands = done = 0
    while True:
        process, started = command.start(), time.monotonic()
        commands += 1
        schedule = draw_schedule(run_kills - done)
        while process.poll() is None and time.monotonic() - started < _TIMEOUT_S:
            if schedule and time.monotonic() - started >= schedule[0][0] and _kill(process, schedule[0][1]):
                kills[schedule.pop(0)[1]] += 1
                done += 1
            time.sleep(0.05)
        process.kill()
        log = process.communicate()[0]
        if process.returncode == 0:
            verify = [sys.executable, "-m", "jobs.verify", "--output.path", str(command.output)]
            result = subprocess.run(verify, capture_output=True, text=True)
            if result.returncode:
                raise SystemExit(f"jobs.verify: {result.stdout}{result.stderr}")
            return commands
        if process.returncode not in (-signal.SIGKILL, EXIT_STOPPED):
            raise SystemExit(f"the run does not finish: {log}")


def _kill(driver: subprocess.Popen[str], victim: str) -> bool:
    """Kill the driver or one of its workers. Return False if there is no such process."""
    if victim == "driver":
        driver.kill()
        return True
    with contextlib.suppress(psutil.Error):
        for worker in ray_workers(victim, [psutil.Process(driver.pid)]):
            worker.kill()
            return True
    return False


def _measure_listing(server: S3Server, keys: int) -> dict[str, float]:
    """Create objects and measure how long a new process takes to list them, as the planning of a run does."""
    filesystem, bucket = server.filesystem(), f"keys-{uuid.uuid4().hex[:12]}"
    filesystem.create_dir(bucket)

    def put(number: int) -> None:
        with filesystem.open_output_stream(f"{bucket}/in/{number // 1000:04}/{number:07}.parquet") as file:
            file.write(b"x")

    with ThreadPoolExecutor(16) as pool:
        for _ in pool.map(put, range(keys)):
            pass
    environment = {**os.environ, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}"}
    command = [sys.executable, "-c", _LIST_FILES, f"s3://{bucket}/in"]
    files, seconds, peak_mib_growth = subprocess.run(
        command, capture_output=True, text=True, env=environment, check=True
    ).stdout.split()
    assert int(files) == keys
    return {"keys": keys, "seconds": float(seconds), "peak_mib_growth": float(peak_mib_growth)}


def _download(server: S3Server, bucket: str, folder: Path) -> Path:
    folder.mkdir()
    fs.copy_files(f"{bucket}/out", str(folder), server.filesystem(), fs.LocalFileSystem())
    return folder


if __name__ == "__main__":
    sys.exit(main())
